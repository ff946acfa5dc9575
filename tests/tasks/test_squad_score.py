"""Exact match and F1 as the official SQuAD scripts give them: what they returned for these, run by themselves."""

import pytest

from shoal.tasks.squad_score import plain, score

# (told, right ones, by version 1.1, by version 2.0), each (exact, F1)
CASES = [
    ("the Shoal!", ["shoal"], (1, 1), (1, 1)),
    ("A shoal of the fish", ["shoal of fish", "a fish"], (1, 1), (1, 1)),
    ("fish fish fish", ["fish fish"], (0, 0.8), (0, 0.8)),
    ("U.S.A.", ["USA"], (1, 1), (1, 1)),
    ("state-of-the-art", ["state of the art"], (0, 0), (0, 0)),
    ("“shoal”", ["shoal"], (0, 0), (0, 0)),
    ("  in\n1998\t", ["1998", "in 1998"], (1, 1), (1, 1)),
    ("Athena's an owl", ["athenas owl"], (1, 1), (1, 1)),
    ("theatre", ["the atre"], (0, 0), (0, 0)),
    ("the", ["a"], (1, 0), (1, 1)),
    ("", ["the"], (1, 0), (1, 1)),
    ("", ["shoal"], (0, 0), (0, 0)),
    ("!", ["shoal", "?"], (1, 0), (0, 0)),
    ("鱼群", ["鱼群。"], (0, 0), (0, 0)),
    ("two big fish swim", ["big fish", "two small fish swim"], (0, 0.75), (0, 0.75)),
]


@pytest.mark.parametrize(("told", "right", "first", "second"), CASES)
def test_scores_are_the_official_ones(
    told: str, right: list[str], first: tuple[float, float], second: tuple[float, float]
) -> None:
    assert score(told, right, unanswerable=False) == pytest.approx(first)
    assert score(told, right, unanswerable=True) == pytest.approx(second)


def test_a_question_without_an_answer_is_right_if_none_is_told() -> None:
    assert score("", [], unanswerable=True) == (1, 1)
    assert score("the", [], unanswerable=True) == (1, 1)
    assert score("shoal", [], unanswerable=True) == (0, 0)


def test_articles_are_words_and_white_space_is_one_space() -> None:
    assert plain("The  theory\u3000of an atheist, a-the") == "theory of atheist athe"
