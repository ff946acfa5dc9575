"""Generated text: what the model says, in whole characters, up to the first stop string."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from shoal.core.errors import InputError
from shoal.core.seeds import generator
from shoal.data.tokenizer import TextTokenizer, build_char, train_bpe
from shoal.models.config import TransformerConfig
from shoal.serve.generation import LanguageModel, generate, load_language_model
from shoal.serve.sampling import Sampling, draw
from tests.models.shapes import FAMILIES, GPT2, random_model
from tests.serve.languages import reciting, write_language_model

CHAR = build_char("abcdefgh \né日")
BPE = train_bpe(["the fish and the shoal swim in the sea, naïve 日本語 😀\n"] * 3, 290)
TOKENIZERS = {"char": CHAR, "bpe": BPE}
GREEDY = Sampling(0)


def naive(language: LanguageModel, prompt: str, tokens: int, sampling: Sampling, seed: int) -> str:
    """The same without a cache, a stream or stop strings: the whole window through the model for every token."""
    model, tokenizer = language.model, language.tokenizer
    context, random = model.config.context, generator(seed, "generate")
    start = tokenizer.encode(prompt).tolist() or [tokenizer.end_of_text]
    said: list[int] = []
    window = start[-(context - 1) :]
    while len(said) < tokens:
        with torch.no_grad():
            [token] = draw(model.project(model(torch.tensor([window]))[:, -1]), [sampling], [random])
        if token == tokenizer.end_of_text:
            break
        said.append(token)
        window.append(token)
        if len(window) > context:
            window = (start + said)[-(context // 2) :]
    return tokenizer.decode(said)


def fitted(config: TransformerConfig, tokenizer: TextTokenizer) -> TransformerConfig:
    return replace(config, vocabulary=tokenizer.vocabulary)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "prompt"), [("char", "a bad cafe"), ("bpe", "the naïve 😀")])
def test_greedy_text_is_that_of_transformers(tmp_path: Path, family: str, name: str, prompt: str) -> None:
    tokenizer = TOKENIZERS[name]
    write_language_model(tmp_path, tokenizer, replace(fitted(FAMILIES[family], tokenizer), context=48))
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    inputs = their_tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        output = theirs.generate(inputs["input_ids"], max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = their_tokenizer.decode(output, skip_special_tokens=True)
    assert expected
    assert "".join(generate(load_language_model(tmp_path), prompt, 20, GREEDY)) == expected


@settings(deadline=None, max_examples=30)
@given(
    family=st.sampled_from(sorted(FAMILIES)), context=st.integers(2, 12), length=st.integers(0, 30),
    tokens=st.integers(1, 40), temperature=st.sampled_from([0.0, 1.0]), seed=st.integers(0, 20),
)  # fmt: skip
def test_text_is_that_of_the_naive_way_also_beyond_the_context(
    family: str, context: int, length: int, tokens: int, temperature: float, seed: int
) -> None:
    config = replace(fitted(FAMILIES[family], CHAR), context=context)
    language = LanguageModel(random_model(config, seed), CHAR)
    prompt = ("a bad cafe\nhé日" * 3)[:length]
    sampling = Sampling(temperature, top_k=5, top_p=0.95)
    text = "".join(generate(language, prompt, tokens, sampling, seed))
    assert text == naive(language, prompt, tokens, sampling, seed)
    assert len(text) <= tokens


@pytest.mark.parametrize("context", [1, 2, 3])
def test_a_tiny_context_generates_as_many_tokens_as_asked(context: int) -> None:
    language = LanguageModel(random_model(replace(fitted(GPT2, CHAR), context=context)), CHAR)
    assert all(len("".join(generate(language, prompt, 9, GREEDY))) in range(10) for prompt in ("", "a", "abcdefgh"))


def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    language = LanguageModel(random_model(fitted(GPT2, CHAR), scale=0.1), CHAR)
    texts = ["".join(generate(language, "abc", 40, Sampling(1.0), seed)) for seed in (1, 1, 2)]
    torch.manual_seed(5)
    assert texts[0] == texts[1] == "".join(generate(language, "abc", 40, Sampling(1.0), 1))
    assert texts[0] != texts[2]


MIXED = "naïve 日本語 😀 the sea 👨‍👩‍👧 e\u0301 end\n"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_text_comes_whole_and_in_many_pieces(name: str) -> None:
    text = MIXED if name == "bpe" else "a bad é日 cafe\n"
    pieces = list(generate(reciting(text, TOKENIZERS[name]), "", 200, GREEDY))
    assert "".join(pieces) == text
    assert len(pieces) > 7
    assert all(pieces)


@settings(deadline=None, max_examples=30)
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("日本語😀é\ufffd"), min_size=1, max_size=12))
def test_no_piece_cuts_a_character(text: str) -> None:
    pieces = list(generate(reciting(text, BPE), "", 100, GREEDY))
    assert "".join(pieces) == text
    assert [piece for piece in pieces if "\ufffd" in piece and "\ufffd" not in text] == []


@given(
    tokens=st.lists(
        st.integers(0, BPE.vocabulary - 2).filter(lambda token: token != BPE.end_of_text), min_size=1, max_size=12
    )
)
@settings(deadline=None, max_examples=30)
def test_pieces_of_any_tokens_join_to_their_text(tokens: list[int]) -> None:
    # also bytes that are no characters
    assert "".join(generate(reciting(tokens, BPE), "", 100, GREEDY)) == BPE.decode(tokens)


def test_a_text_that_is_cut_by_the_number_of_tokens_ends_there() -> None:
    assert "".join(generate(reciting("abcdefgh", CHAR), "", 3, GREEDY)) == "abc"
    # the first two bytes of a character of three
    assert "".join(generate(reciting(BPE.encode("é€").tolist(), BPE), "", 4, GREEDY)).startswith("é")


def test_text_ends_at_the_end_of_text_token_which_is_no_part_of_it() -> None:
    tokens = [*CHAR.encode("abc").tolist(), CHAR.end_of_text, *CHAR.encode("def").tolist()]
    assert "".join(generate(reciting(tokens, CHAR), "", 100, GREEDY)) == "abc"
    assert list(generate(reciting("", CHAR), "", 100, GREEDY)) == []


def assert_ends_before_a_stop(text: str, found: str, stop: Sequence[str]) -> None:
    assert text.startswith(found)
    assert not any(word in found for word in stop)
    if any(word in text for word in stop):
        assert any(text.startswith(found + word) for word in stop)
    else:
        assert found == text


@settings(deadline=None, max_examples=25)
@given(text=st.text("ab c", max_size=25), stop=st.lists(st.text("ab c", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_a_stop_string(text: str, stop: list[str]) -> None:
    pieces = list(generate(reciting(text, CHAR), "", 100, GREEDY, stop=stop))
    assert_ends_before_a_stop(text, "".join(pieces), stop)


@settings(deadline=None, max_examples=25)
@given(
    text=st.lists(st.sampled_from(["the ", "sea", "fish", "日本", "😀", " ", "a"]), max_size=8).map("".join),
    stop=st.lists(st.sampled_from(["he s", "a日", "😀", "本", "fishfish", "sea ", "x"]), max_size=3),
)
def test_a_stop_string_that_spans_tokens_or_characters_of_many_bytes_never_shows(text: str, stop: list[str]) -> None:
    pieces = list(generate(reciting(text, BPE), "", 100, GREEDY, stop=stop))
    assert_ends_before_a_stop(text, "".join(pieces), stop)


def test_what_only_began_like_a_stop_string_is_told_at_the_end() -> None:
    assert "".join(generate(reciting("abc<", build_char("abc<|")), "", 100, GREEDY, stop=["<|"])) == "abc<"


def test_a_space_that_a_tokenizer_writes_between_words_is_kept() -> None:
    library = Tokenizer(models.WordLevel({"▁fish": 0, "▁swim": 1, "</s>": 2}, unk_token="</s>"))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    tokenizer = TextTokenizer(library, "</s>", {})
    language = reciting([0, 1, 0], tokenizer)  # its first word would follow an empty prompt
    assert "".join(generate(language, "fish swim", 10, GREEDY)) == " swim fish"


def test_a_prompt_outside_a_character_vocabulary_is_refused() -> None:
    language = LanguageModel(random_model(fitted(GPT2, CHAR)), CHAR)
    with pytest.raises(InputError, match=r"the character 'z' \(U\+007A\) is not in the character vocabulary"):
        next(generate(language, "z", 3))


def test_what_looks_like_a_special_token_in_a_prompt_is_text() -> None:
    language = LanguageModel(random_model(replace(fitted(GPT2, BPE), context=64)), BPE)
    assert BPE.end_of_text not in BPE.encode("<|endoftext|>")
    list(generate(language, "<|endoftext|>", 3))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    write_language_model(tmp_path, CHAR, fitted(GPT2, CHAR))
    BPE.write(tmp_path)
    with pytest.raises(InputError, match="its tokenizer has 290 tokens, its model only 13"):
        load_language_model(tmp_path)


@pytest.mark.parametrize("ends", [3, [3, 5], None])
def test_the_folder_may_name_further_tokens_that_end_a_text(tmp_path: Path, ends: int | list[int] | None) -> None:
    write_language_model(tmp_path, CHAR, fitted(GPT2, CHAR))
    assert load_language_model(tmp_path).ends == {CHAR.end_of_text}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    assert load_language_model(tmp_path).ends == {
        CHAR.end_of_text,
        *([] if ends is None else [ends] if ends == 3 else [3, 5]),
    }


@pytest.mark.parametrize("ends", ["3", [3, 99], [-1], {}])
def test_an_end_that_is_no_token_is_told(tmp_path: Path, ends: object) -> None:
    write_language_model(tmp_path, CHAR, fitted(GPT2, CHAR))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(InputError, match=r"generation_config.json: 'eos_token_id' has .*, which is no token of the model's"):
        load_language_model(tmp_path)


def test_weights_that_do_not_fit_the_config_are_told_with_their_folder(tmp_path: Path) -> None:
    write_language_model(tmp_path, CHAR, fitted(GPT2, CHAR))
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"n_layer": 2', '"n_layer": 3'))
    with pytest.raises(InputError, match=f"{tmp_path}: the weights have no 'transformer.h.2.ln_1.weight'"):
        load_language_model(tmp_path)
