"""FineWeb's own rules (Penedo et al. 2024, arXiv:2406.17557, section 3.6): what lists, menus and forms look like.

Few lines end in punctuation, many are short, characters stand in lines that were there before. The limits are the
paper's; `newlines_most` (line breaks per word) is from the code published with it.
"""

from collections.abc import Iterator

from shoal.data.cleaning.draft import Draft, Dropped, Stage
from shoal.data.cleaning.repetition import repeats
from shoal.data.cleaning.thresholds import LimitsByLanguage, Thresholds, first_broken

ENDS = tuple(".!?。！？…:;：；\"'”’」』)）》")


def open_fineweb(limits: LimitsByLanguage) -> Stage:
    """Drop what looks like a list."""

    def judge(draft: Draft) -> Draft | Dropped:
        own = limits[draft.language]
        return first_broken(_measures(draft, own), own) or draft

    return judge


def _measures(draft: Draft, limits: Thresholds) -> Iterator[tuple[str, float]]:
    lines = draft.lines
    yield "punctuated_lines_least", sum(line.endswith(ENDS) for line in lines) / len(lines)
    yield "short_lines_most", sum(len(line) <= limits.short_line_characters for line in lines) / len(lines)
    yield "line_duplicates_most", repeats(lines)[1] / sum(map(len, lines))
    yield "newlines_most", draft.text.count("\n") / max(1, len(draft.words))
