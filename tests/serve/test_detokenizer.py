"""Tokens become text piece by piece: all of it, in whole characters, and nothing of a stop string."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from shoal.data.tokenizer import TextTokenizer, train_bpe
from shoal.serve.detokenizer import (
    LONGEST_HELD,
    AnyDetokenizer,
    ByteDetokenizer,
    Detokenizer,
    StopStrings,
    make_detokenizer,
    token_text,
)

BPE = train_bpe(["the fish and the shoal swim in the sea, naïve 日本語 😀\n"] * 3, 290)
PROMPT = BPE.encode("the naïve ").tolist()
some_text = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("日本語😀é\ufffd"), max_size=12)
some_tokens = st.lists(st.integers(0, BPE.vocabulary - 1), max_size=60)


def words() -> TextTokenizer:
    """Whole words, and bytes for what is no word, as SentencePiece has them."""
    vocabulary = {"</s>": 0, "▁fish": 1, "▁swim": 2, "ming": 3} | {f"<0x{byte:02X}>": 4 + byte for byte in range(256)}
    library = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return TextTokenizer(library, "</s>", {})


def told(detokenizer: Detokenizer, tokens: Sequence[int]) -> list[str]:
    return [*map(detokenizer.put, tokens), detokenizer.rest()]


both = pytest.mark.parametrize("kind", [ByteDetokenizer, AnyDetokenizer])
Kind = Callable[[TextTokenizer, Sequence[int]], Detokenizer]


@both
@settings(deadline=None, max_examples=100)
@given(text=some_text)
def test_a_text_comes_whole_and_no_character_in_parts(kind: Kind, text: str) -> None:
    pieces = told(kind(BPE, PROMPT), BPE.encode(text).tolist())
    assert "".join(pieces) == text
    assert [piece for piece in pieces if "\ufffd" in piece and "\ufffd" not in text] == []


@both
@settings(deadline=None, max_examples=200)
@given(tokens=some_tokens)
def test_any_tokens_give_the_text_that_they_give_at_once(kind: Kind, tokens: list[int]) -> None:
    assert "".join(told(kind(BPE, PROMPT), tokens)) == BPE.decode(tokens)


@settings(deadline=None, max_examples=300)
@example([170, 95], [])  # ED A1, which begin no character, but which Python's decoder keeps back
@example([170, 95], [95])
@given(some_tokens, some_tokens)
def test_bytes_tell_what_decoding_tells_wherever_a_prompt_ends(prompt: list[int], tokens: list[int]) -> None:
    assert "".join(told(ByteDetokenizer(BPE, prompt), tokens)) == "".join(told(AnyDetokenizer(BPE, prompt), tokens))


def test_tokenizers_whose_tokens_are_bytes_are_read_as_such() -> None:
    assert isinstance(make_detokenizer(BPE, PROMPT), ByteDetokenizer)
    assert isinstance(make_detokenizer(words(), [1]), AnyDetokenizer)


@both
@settings(deadline=None, max_examples=50)
@given(tokens=some_tokens, byte=st.integers(0, 255), times=st.integers(LONGEST_HELD + 1, 80))
def test_bytes_that_are_no_characters_are_not_held_back_for_ever(
    kind: Kind, tokens: list[int], byte: int, times: int
) -> None:
    [junk] = BPE.encode(bytes([byte]).decode("latin-1")).tolist()[-1:]
    tokens = [*tokens, *[junk] * times]
    pieces = told(kind(BPE, PROMPT), tokens)
    assert "".join(pieces) == BPE.decode(tokens)
    assert len(pieces[-1]) <= LONGEST_HELD + 1


def test_a_space_between_words_is_told_where_the_text_goes_on_and_not_where_it_begins() -> None:
    tokenizer = words()
    assert told(make_detokenizer(tokenizer, [1]), [2, 3, 1]) == [" swim", "ming", " fish", ""]
    assert told(make_detokenizer(tokenizer, []), [2, 3, 1]) == ["swim", "ming", " fish", ""]
    assert [token_text(tokenizer, token) for token in (2, 3)] == [" swim", "ming"]


def test_a_character_of_byte_tokens_comes_when_it_is_whole() -> None:
    tokens = [4 + byte for byte in "é日😀".encode()]
    assert [piece for piece in told(make_detokenizer(words(), [1]), tokens) if piece] == ["é", "日", "😀"]


some_words = st.text("ab c", min_size=1, max_size=4)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.text("ab c", max_size=4), max_size=8), st.lists(some_words, max_size=3))
def test_a_text_ends_before_the_first_stop_string_and_shows_nothing_of_it(pieces: list[str], stop: list[str]) -> None:
    stops, shown = StopStrings(stop), ""
    for piece in pieces:
        shown += stops.put(piece)
        if stops.found:
            break
        # what may yet be a stop string is not shown; what can't be is
        so_far = "".join(pieces)
        held = len(stops.rest())
        assert so_far.startswith(shown)
        assert not held or any(word.startswith(stops.rest()) for word in stop)
    text = "".join(pieces)
    if stops.found:
        assert any(text.startswith(shown + word) for word in stop)
        assert not any(word in shown for word in stop)
    else:
        assert shown + stops.rest() == text
        assert not any(word in text for word in stop)


@pytest.mark.parametrize(
    ("pieces", "stop", "shown"),
    [
        (["ab", "ab", "ac"], ["abac"], "ab"),
        (["aaa", "aab"], ["aab"], "aaa"),
        (["x", "y<", "|e", "nd|>z"], ["<|end|>"], "xy"),
        (["fish"], ["sh", "ish"], "f"),
    ],
)
def test_a_stop_string_is_found_across_pieces(pieces: list[str], stop: list[str], shown: str) -> None:
    stops = StopStrings(stop)
    assert "".join(map(stops.put, pieces)) == shown
    assert stops.found
