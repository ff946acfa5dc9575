"""What is mended, masked, told apart and found in one document."""

import ftfy
import pytest
from hypothesis import given
from hypothesis import strategies as some
from texts import LANGUAGES, dropped_by, join, words_of

from shoal.core.errors import RecipeError
from shoal.data.cleaning.contamination import build_index, open_decontamination
from shoal.data.cleaning.draft import Draft, split_units
from shoal.data.cleaning.language import open_language
from shoal.data.cleaning.personal import open_mask
from shoal.data.cleaning.repair import CONFIGURATION, refuse_empty, repair

PROSE = {
    "en": "The fishermen went out before sunrise, and when they came back in the evening the village was at the shore.",
    "zh": "渔民们在日出之前就出海了，傍晚回来的时候，全村的人都站在岸边等着他们，孩子们高兴地跑来跑去。",
    "ja": "漁師たちは日の出前に海へ出て、夕方に帰ってきたときには、村のみんなが岸に立って待っていました。",
    "de": "Die Fischer fuhren vor Sonnenaufgang hinaus, und als sie am Abend zurückkamen, stand das ganze Dorf am Ufer.",
}


@pytest.mark.parametrize(
    ("broken", "whole"),
    [
        ("Ã¼ber schÃ¶ne FlÃ¼sse", "über schöne Flüsse"),
        ("âœ” No problems", "✔ No problems"),
        ("ä¸­æ–‡", "中文"),
        ("a\x00b\x1b[31mred\x1b[0m\x7f\ufeff", "abred"),
        ("one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("fish &amp; chips", "fish & chips"),
        ("e\u0301", "é"),
        ("全角，标点！ＡＢＣ “quotes” ﬁ", "全角，标点！ＡＢＣ “quotes” ﬁ"),
    ],
)
def test_repair_mends_what_is_broken_and_nothing_else(broken, whole):
    assert repair(Draft(broken)).text == whole


@given(some.text(some.sampled_from("ab &;<lt\r\n\t\x0c\x1b[0m\x7f\x00\"'"), max_size=40))
def test_the_short_way_for_ascii_gives_what_ftfy_gives(text):
    assert repair(Draft(text)).text == ftfy.fix_text(text, CONFIGURATION)


def test_documents_of_space_alone_are_empty():
    assert dropped_by(refuse_empty, "") == dropped_by(refuse_empty, " \n\u3000\t") == "empty"
    assert dropped_by(refuse_empty, " x ") == ""


@pytest.mark.parametrize("language", PROSE)
def test_the_language_filter_keeps_its_own(language):
    kept = open_language([language], 0.65)
    for other, text in PROSE.items():
        assert dropped_by(kept, text) == ("" if other == language else "other_language")
    assert open_language([], 0)(Draft(PROSE[language])).language == language


def test_han_without_kana_is_not_japanese():
    assert open_language([], 0)(Draft("早餐比较普通, 选择不多.")).language == "zh"


def test_a_document_of_no_sure_language_is_dropped():
    assert dropped_by(open_language(["en"], 0.99), "Fish, poisson, 魚, Fisch. Kala uinti. The sea.") in (
        "unsure_language",
        "other_language",
    )
    with pytest.raises(RecipeError, match="'English' is not a language's code; accepted: en, zh"):
        open_language(["English"], 0.65)


ALL = ("email", "phone", "ip", "card", "chinese_id")


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to jane.doe+fish@mail.example.org.", "Write to <email>."),
        ("邮箱zhang_san@163.com，请联系", "邮箱<email>，请联系"),
        ("not@mail, a@b and @handle", "not@mail, a@b and @handle"),
        ("Call +44 20 7946 0958 or (415) 555-0132.", "Call <phone> or <phone>."),
        ("手机13812345678或138-1234-5678。", "手机<phone>或<phone>。"),
        ("電話は03-1234-5678です", "電話は<phone>です"),
        ("in 1999-2003, 12345678 pieces, ISBN 978-0-306-40615-7", "in 1999-2003, 12345678 pieces, ISBN 978-0-306-40615-7"),
        ("from 8.8.8.8, 2001:4860:4860::8888.", "from <ip>, <ip>."),
        ("192.168.0.1, 999.1.1.1, 1.2.3, 12:30:45", "192.168.0.1, 999.1.1.1, 1.2.3, 12:30:45"),
        ("card 4111 1111 1111 1111, or 5500-0000-0000-0004", "card <card>, or <card>"),
        ("card 4111 1111 1111 1112", "card 4111 1111 1111 1112"),
        ("身份证11010519491231002X，", "身份证<chinese_id>，"),
        ("身份证110105194912310021，", "身份证110105194912310021，"),
        ("身份证11010519491331002X，", "身份证11010519491331002X，"),
    ],
)
def test_personal_data_is_masked_where_its_check_holds(text, masked):
    assert open_mask(ALL)(Draft(text)).text == masked


def test_only_the_asked_kinds_are_masked():
    assert open_mask(["ip"])(Draft("a@b.org 8.8.8.8")).text == "a@b.org <ip>"
    with pytest.raises(RecipeError, match=r"data\.clean\.mask: 'name' is not known; accepted: chinese_id, card, ip"):
        open_mask(["name"])


def test_masking_takes_time_in_proportion_to_endless_runs():
    for run in ("1" * 300_000, "a" * 300_000, "1-" * 150_000, "1." * 150_000, "a:" * 150_000, "a@" * 150_000):
        assert open_mask(ALL)(Draft("@ " + run)).text == "@ " + run


@pytest.mark.parametrize("language", LANGUAGES)
def test_thirteen_words_in_a_row_are_found_whatever_their_case_and_punctuation(language):
    size = 13 if language == "en" else 19
    evaluation, other = words_of(language, 60, 1), words_of(language, 60, 2)
    stage = open_decontamination(build_index([join(language, evaluation)]))
    assert dropped_by(stage, join(language, other)) == ""
    for count, rule in ((size, "evaluation_text"), (size - 1, "")):
        planted = [*other[:30], *(word.upper() for word in evaluation[20 : 20 + count]), *other[30:]]
        assert dropped_by(stage, (join(language, planted[:38]) + " — " + join(language, planted[38:]))) == rule


def test_shorter_evaluation_texts_are_found_whole_from_eight_words_on():
    words = words_of("en", 60, 1)
    other = " ".join(words_of("en", 60, 2))
    stage = open_decontamination(build_index([" ".join(words[2:10]), " ".join(words[20:27])]))
    assert dropped_by(stage, f"{other} {' '.join(words[2:10])}. {other}") == "evaluation_text"
    assert dropped_by(stage, f"{other} {' '.join(words[20:27])}. {other}") == ""


def test_units_are_words_or_single_ideograms():
    assert split_units("The 鱼群 swims, 海の中 42!") == ["The", "鱼", "群", "swims", "海", "の", "中", "42"]
    assert [Draft(text).spaceless for text in ("fish 鱼", "鱼群在海里游 fish", "")] == [False, True, False]
