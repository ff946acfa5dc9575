"""Repair of text that was decoded wrongly on its way (mojibake), of entities, control characters and line ends, by ftfy.

What would rewrite correct text is off: curly quotes stay, and so do full-width forms, the right punctuation of Chinese
and Japanese. The result is in Unicode's composed form (NFC).

ftfy (Speer 2019, doi:10.5281/zenodo.2591652) takes text line by line, at some MB/s. ASCII text that has none of the
characters which it looks for comes out as it went in, so it isn't asked about that.
"""

import re

import ftfy

from shoal.data.cleaning.draft import Draft, Dropped

CONFIGURATION = ftfy.TextFixerConfig(
    unescape_html="auto",
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    fix_line_breaks=True,
    normalization="NFC",
    explain=False,
)

# Beginnings of entities, carriage returns, and control characters, the escape of terminals among them.
_SUSPECT = re.compile("[&\r\x00-\x08\x0b\x0e-\x1f\x7f]")


def repair(draft: Draft) -> Draft | Dropped:
    """The same document, or a mended one; dropped where no text is left."""
    text = draft.text
    if not text.isascii() or _SUSPECT.search(text):
        text = ftfy.fix_text(text, CONFIGURATION)
    return draft if text == draft.text else Draft(text, draft.language)


def refuse_empty(draft: Draft) -> Draft | Dropped:
    """Documents without any text but space teach nothing."""
    return draft if draft.text and not draft.text.isspace() else Dropped("empty")
