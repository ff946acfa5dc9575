"""Each quality rule keeps what just reaches its limit and drops what just does not, in words or in characters."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from texts import GAP, LANGUAGES, VOCABULARY, assert_edge, dropped_by, join, line, only, repeating, words_of

from shoal.core.errors import RecipeError
from shoal.data.cleaning.c4 import open_c4
from shoal.data.cleaning.draft import Draft, hash_words, split_units
from shoal.data.cleaning.fineweb import open_fineweb
from shoal.data.cleaning.gopher import open_gopher
from shoal.data.cleaning.repetition import REPEATED, TOP, open_repetition, repeated_characters, top_ngram
from shoal.data.cleaning.thresholds import resolve_thresholds

every_language = pytest.mark.parametrize("language", LANGUAGES)


@every_language
def test_a_document_has_fifty_words_or_seventy_five_characters(language):
    least = 50 if language == "en" else 75
    texts = [join(language, words_of(language, count)) for count in (least, least - 1)]
    assert_edge(open_gopher, "words_least", language, *texts)


@every_language
def test_a_document_has_no_more_words_than_the_limit(language):
    stage = open_gopher(only(words_most=200))
    assert dropped_by(stage, join(language, words_of(language, 200)), language) == ""
    assert dropped_by(stage, join(language, words_of(language, 201)), language) == "words_most"


def test_words_are_three_to_ten_letters_long_on_average_where_there_are_words():
    assert_edge(open_gopher, "word_length_least", "en", "sea " * 60, "sea " * 59 + "at ")
    assert_edge(open_gopher, "word_length_most", "en", "seafarings " * 60, "seafarings " * 59 + "seafaringsx ")
    assert dropped_by(open_gopher(only("word_length_least")), join("zh", words_of("zh", 100)), "zh") == ""


@every_language
@pytest.mark.parametrize(("rule", "symbol"), [("hashes_most", "#"), ("ellipses_most", "…"), ("ellipses_most", "...")])
def test_a_tenth_of_the_words_may_have_a_symbol(language, rule, symbol):
    words = words_of(language, 100)
    texts = [join(language, [word + symbol for word in words[:count]] + words[count:]) for count in (10, 11)]
    assert_edge(open_gopher, rule, language, *texts)


@every_language
def test_nine_tenths_of_the_lines_may_be_bullets(language):
    lines = [line(language, 12, seed) for seed in range(10)]
    texts = ["\n".join([f"- {text}" for text in lines[:count]] + lines[count:]) for count in (9, 10)]
    assert_edge(open_gopher, "bullet_lines_most", language, *texts)


@every_language
def test_three_tenths_of_the_lines_may_end_in_an_ellipsis(language):
    lines = [line(language, 12, seed) for seed in range(10)]
    texts = ["\n".join([text[:-1] + "…" for text in lines[:count]] + lines[count:]) for count in (3, 4)]
    assert_edge(open_gopher, "ellipsis_lines_most", language, *texts)


@every_language
def test_four_fifths_of_the_words_have_letters(language):
    words = words_of(language, 100)
    mixed = [[word for pair in zip(words, ["7"] * count, strict=False) for word in pair] for count in (20, 21)]
    texts = [join(language, pairs + words[len(pairs) // 2 : 100 - len(pairs) // 2]) for pairs in mixed]
    assert_edge(open_gopher, "alphabetic_words_least", language, *texts)


@every_language
def test_a_fifth_of_the_characters_may_be_digits(language):
    text = join(language, words_of(language, 100)) + GAP[language]
    digits = len(text) // 4
    assert_edge(open_gopher, "digits_most", language, text + "1" * digits, text + "1" * (digits + 1))


@every_language
def test_two_stop_words_are_needed(language):
    words = words_of(language, 100)
    assert_edge(open_gopher, "stop_words_least", language, join(language, words), join(language, words[1:]))


def test_a_language_whose_stop_words_are_not_known_needs_none():
    assert dropped_by(open_gopher(only("stop_words_least")), "kala uinti meressä " * 30, "fi") == ""


@every_language
@pytest.mark.parametrize(("name", "gap"), [("line", "\n"), ("paragraph", "\n\n")])
def test_three_tenths_of_the_lines_or_paragraphs_may_repeat(language, name, gap):
    lines = [line(language, 12, seed) for seed in range(10)]
    texts = [gap.join(lines[: 10 - again] + [lines[0]] * again) for again in (3, 4)]
    assert_edge(open_repetition, f"repeated_{name}s_most", language, *texts)
    texts = [gap.join([*lines, "x" * size, "x" * size]) for size in _edge_of_a_fifth(lines, gap)]
    assert_edge(open_repetition, f"repeated_{name}_characters_most", language, *texts)


def _edge_of_a_fifth(lines, gap):
    """The longest line whose repetition is a fifth of all characters, and one that is longer by one."""
    others = sum(map(len, lines)) + len(gap) * 11
    last = max(size for size in range(1, others) if size / (others + 2 * size) <= 0.2)
    return last, last + 1


def naive_top(words, size, gap):
    """The commonest n-gram's characters, counted one by one."""
    ngrams = [tuple(words[place : place + size]) for place in range(len(words) - size + 1)]
    ngram, count = Counter(ngrams).most_common(1)[0]
    return count * len(gap.join(ngram))


def naive_repeated(words, size):
    """Characters of words in n-grams that stood there before, found one by one."""
    seen, covered = set(), set()
    for place in range(len(words) - size + 1):
        ngram = tuple(words[place : place + size])
        if ngram in seen:
            covered |= set(range(place, place + size))
        seen.add(ngram)
    return sum(len(words[place]) for place in covered)


@every_language
@pytest.mark.parametrize("size", TOP + REPEATED)
def test_ngrams_may_fill_their_share_and_no_more(language, size):
    units = size if language == "en" else int(1.5 * size)
    kind = "top" if size in TOP else "repeated"
    limit = getattr(resolve_thresholds({})[language], f"{kind}_{size}gram_most")
    verdicts = set()
    for words in repeating(language, units):
        text = join(language, words)
        counted = words if language == "en" else split_units(text)
        found = naive_top(counted, units, GAP[language]) if size in TOP else naive_repeated(counted, units)
        verdict = dropped_by(open_repetition(only(f"{kind}_{size}gram_most")), text, language)
        assert bool(verdict) == (found / len(text) > limit)
        verdicts.add(verdict)
    assert verdicts == {"", f"{kind}_{size}gram_most"}


@given(some.lists(some.sampled_from(["a", "bb", "ccc", "d"]), min_size=1, max_size=60), some.integers(1, 6))
def test_shares_of_ngrams_are_those_counted_one_by_one(words, size):
    hashes, lengths = hash_words(words), np.array([len(word) for word in words])
    assert repeated_characters(hashes, lengths, size) == naive_repeated(words, size)
    if len(words) >= size:
        assert top_ngram(hashes, lengths, size, 1) == naive_top(words, size, " ")


def test_shares_of_the_commonest_ngram_are_those_of_datatrove():
    theirs = pytest.importorskip("datatrove.pipeline.filters.gopher_repetition_filter")
    for words in repeating("en", 3):
        hashes, lengths = hash_words(words), np.array([len(word) for word in words])
        for size in TOP:
            assert top_ngram(hashes, lengths, size, 1) == theirs.find_top_duplicate(theirs.get_n_grams(words, size))


@every_language
def test_c4_wants_five_sentences(language):
    texts = ["\n".join(line(language, 8, seed) for seed in range(count)) for count in (5, 4)]
    assert_edge(lambda limits: open_c4(limits, False), "sentences_least", language, *texts)
    sentence = "Fish swim! " if language == "en" else "鱼游水！"
    assert_edge(lambda limits: open_c4(limits, False), "sentences_least", language, sentence * 5, sentence * 4)


@every_language
def test_c4_drops_lines_of_few_words(language):
    least = 3 if language == "en" else 5
    lines = [line(language, 9, 1), line(language, least, 2)[:-1], line(language, least - 1, 3)[:-1], line(language, 9, 4)]
    kept = open_c4(only("line_words_least"), False)(Draft("\n".join(lines), language))
    assert kept.text == "\n".join([lines[0], lines[1], lines[3]])


def test_c4_drops_lines_about_scripts_and_policies_and_with_endless_words():
    lines = [
        "Fish swim in the sea.",
        "Please enable JavaScript.",
        "Read our Cookie Policy now.",
        "a b " + "x" * 1001,
        "a b " + "x" * 1000,
    ]
    kept = open_c4(only("word_characters_most"), False)(Draft("\n".join(lines), "en"))
    assert kept.text == lines[0] + "\n" + lines[4]


@every_language
def test_c4_drops_lines_without_an_end_only_when_asked(language):
    lines = [line(language, 9, 1), line(language, 9, 2)[:-1], line(language, 9, 3)]
    assert open_c4(only(), False)(Draft("\n".join(lines), language)).text == "\n".join(lines)
    assert open_c4(only(), True)(Draft("\n".join(lines), language)).text == lines[0] + "\n" + lines[2]


@every_language
@pytest.mark.parametrize(("added", "rule"), [(" {", "curly_bracket"), (" Lorem ipsum", "lorem_ipsum")])
def test_c4_drops_pages_with_code_or_filler(language, added, rule):
    text = "\n".join(line(language, 8, seed) for seed in range(6))
    assert dropped_by(open_c4(only(), False), text, language) == ""
    assert dropped_by(open_c4(only(), False), text + added, language) == rule


def test_a_page_that_loses_all_its_lines_is_dropped_though_no_sentence_is_asked_for():
    assert dropped_by(open_c4(only("line_words_least"), False), "Too short.\nHere too.") == "sentences_least"


@every_language
def test_fineweb_wants_an_eighth_of_the_lines_to_end_in_punctuation(language):
    lines = [line(language, 20, seed) for seed in range(100)]
    texts = ["\n".join(lines[:ends] + [text[:-1] for text in lines[ends:]]) for ends in (12, 11)]
    assert_edge(open_fineweb, "punctuated_lines_least", language, *texts)


@every_language
def test_fineweb_allows_two_thirds_of_the_lines_to_be_short(language):
    short = 30 if language == "en" else 15
    long = (VOCABULARY[language][0] * 40)[: short + 1]
    texts = ["\n".join([long[:-1]] * count + [long] * (100 - count)) for count in (67, 68)]
    assert_edge(open_fineweb, "short_lines_most", language, *texts)


@every_language
def test_fineweb_allows_a_tenth_of_the_characters_in_repeated_lines(language):
    lines = [(VOCABULARY[language][seed % 40] + str(seed)).ljust(40, "x") for seed in range(9)]
    texts = ["\n".join([*lines, lines[0]]), "\n".join([*lines[1:], lines[1]])]
    assert_edge(open_fineweb, "line_duplicates_most", language, *texts)


@every_language
def test_fineweb_allows_three_line_breaks_for_ten_words_or_fifteen_characters(language):
    units = 10 if language == "en" else 15
    words = words_of(language, units)
    texts = [join(language, words) + "\n" * count for count in (3, 4)]
    assert_edge(open_fineweb, "newlines_most", language, *texts)


def test_limits_can_be_set_for_all_languages_or_for_one():
    limits = resolve_thresholds({"words_least": 20, "zh": {"words_least": 30}})
    assert [limits[language].words_least for language in ("en", "fi", "ja", "zh")] == [20, 20, 20, 30]
    limits = resolve_thresholds({"stop_words_least": 3, "words_least": 20, "fi": {"words_least": 30}})
    assert [limits[language].stop_words_least for language in ("en", "zh", "fi", "th")] == [3, 3, 0, 0]
    with pytest.raises(RecipeError, match=r"no rule 'word_least'; the nearest is 'words_least'\. The rules: words_least, "):
        resolve_thresholds({"ja": {"word_least": 3}})
