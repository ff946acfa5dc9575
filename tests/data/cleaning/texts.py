"""Documents of so many words, in three languages, and rules one at a time."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import fields

from shoal.data.cleaning.draft import Draft, Dropped, Stage
from shoal.data.cleaning.thresholds import LimitsByLanguage, Thresholds, resolve_thresholds

LANGUAGES = ("en", "zh", "ja")

# None of these is a stop word, so a document has just those that it is given.
VOCABULARY = {
    "en": [first + second + last for first in ("sea", "tide", "reef", "shoal", "wave") for second in ("man", "light", "born")
           for last in ("ward", "ing", "er", "less")],
    "zh": list("海洋鱼群游水深浅光影风浪船岸沙石星月云雨山河花草树木鸟兽春夏秋冬东西南北金银铜铁红黄蓝绿"),
    "ja": list("海魚群泳水深浅光影風波船岸砂石星月雲雨山川花草木鳥獣春夏秋冬東西南北金銀アイウエオカキク"),
}  # fmt: skip
STOPS = {"en": ["the", "of"], "zh": ["的", "是"], "ja": ["の", "は"]}
GAP = {"en": " ", "zh": "", "ja": ""}


def join(language: str, words: list[str]) -> str:
    return GAP[language].join(words)


def words_of(language: str, count: int, seed: int = 0) -> list[str]:
    """So many words; the first two are stop words."""
    stream = random.Random(f"{language}{seed}")
    return [*STOPS[language], *stream.choices(VOCABULARY[language], k=count - 2)][:count]


def line(language: str, count: int, seed: int) -> str:
    """A line of so many words, with its full stop."""
    return join(language, words_of(language, count, seed)) + ("." if language == "en" else "。")


def only(*rules: str, **limits: float) -> LimitsByLanguage:
    """The default limits of these rules; no others hold."""
    names = [field.name for field in fields(Thresholds) if field.name.endswith(("_least", "_most"))]
    loose = {name: 0.0 if name.endswith("_least") else math.inf for name in names if name not in rules}
    return resolve_thresholds(loose | limits)


def dropped_by(stage: Stage, text: str, language: str = "en") -> str:
    """The rule that drops a text, or nothing."""
    outcome = stage(Draft(text, language))
    return outcome.rule if isinstance(outcome, Dropped) else ""


def assert_edge(open_stage: Callable[[LimitsByLanguage], Stage], rule: str, language: str, last: str, beyond: str) -> None:
    """One text just passes a rule with its default limit, the other just fails it."""
    stage = open_stage(only(rule))
    assert dropped_by(stage, last, language) == ""
    assert dropped_by(stage, beyond, language) == rule


def repeating(language: str, phrase: int) -> Iterator[list[str]]:
    """Documents of 200 different words among which a phrase of so many words stands ever more often."""
    different = [f"w{number}" if language == "en" else chr(0x4E00 + number) for number in range(200 + phrase)]
    for times in range(190 // (phrase + 2)):
        words = different[:200]
        for number in range(times):
            start = 10 + number * (phrase + 2)
            words[start : start + phrase] = different[200:]
        yield words
