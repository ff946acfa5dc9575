"""`corpus-report.html`: what each cleaning stage kept and dropped, with examples, on one page that needs nothing else."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoal.core.files import write_text

REPORT = "corpus-report.html"

MEANINGS = {
    "repair": "mojibake, entities, control characters and line ends mended",
    "empty": "no text but space",
    "language": "in another language, or not surely in one",
    "gopher": "length, symbols, letters, digits, stop words",
    "repetition": "repeated lines, paragraphs and n-grams",
    "c4": "lines about scripts and policies, curly brackets, few sentences",
    "fineweb": "lists, menus, repeated lines",
    "mask": "personal data replaced",
    "decontaminate": "shares 13 words in a row with an evaluation text",
    "exact": "the same text as an earlier document",
    "near": "similar to an earlier document",
}

STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2rem; font-size: 1.1rem } .faint { opacity: .7 }
.numbers { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1.2rem 0 }
.numbers b { display: block; font-size: 1.5rem } .numbers span { opacity: .7; font-size: .85rem }
table { border-collapse: collapse; width: 100% }
th { text-align: left; font-weight: normal; opacity: .7; font-size: .85rem }
td, th { padding: .25rem 1rem .25rem 0; vertical-align: top; border-bottom: 1px solid #8883 }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.bar { width: 30%; min-width: 8rem } .bar div { display: flex; height: .9rem; margin-top: .3rem; background: #8882 }
.kept { background: #0a7d68 } .dropped { background: #d97a2b }
details { margin: .3rem 0 } summary { cursor: pointer }
pre { background: #8881; padding: .5rem .8rem; border-radius: .4rem; white-space: pre-wrap; margin: .3rem 0 }
pre { overflow-wrap: anywhere }
"""


def write_corpus_report(path: Path, summary: dict[str, Any], sources: Sequence[str]) -> None:
    """Draw the page from `Outcome.summary`; everything that comes from a text is escaped."""
    documents, kept = summary["documents"], summary["kept_documents"]
    numbers = [
        ("documents read", f"{documents:,}"),
        ("documents kept", f"{kept:,} ({_share(kept, documents)})"),
        ("text read", f"{summary['bytes'] / 1e6:,.1f} MB"),
        ("text kept", f"{summary['kept_bytes'] / 1e6:,.1f} MB ({_share(summary['kept_bytes'], summary['bytes'])})"),
    ]
    cards = "".join(f"<div><b>{value}</b><span>{name}</span></div>" for name, value in numbers)
    stages = summary["stages"]
    write_text(
        path,
        f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Corpus report · Shoal</title><style>{STYLE}</style>
<h1>Corpus report</h1><p class="faint">{html.escape(", ".join(sources))}</p>
<div class="numbers">{cards}</div>
<h2>Stages, in order</h2>
<table><tr><th>stage<th class="number">documents<th class="number">changed<th class="number">dropped
<th class="number">MB dropped
<th class="bar">of all documents: <span class="kept">&emsp;</span> kept <span class="dropped">&emsp;</span> dropped
{"".join(_row(stage, documents) for stage in stages)}</table>
<h2>Why, with examples</h2>
{"".join(_examples(stage) for stage in stages) or "<p>Nothing was dropped or changed."}
</html>
""",
    )


def _row(stage: dict[str, Any], documents: int) -> str:
    left = stage["documents"] - stage["dropped"]
    widths = [100 * count / max(1, documents) for count in (left, stage["dropped"])]
    bar = f'<i class="kept" style="width:{widths[0]:.2f}%"></i><i class="dropped" style="width:{widths[1]:.2f}%"></i>'
    return (
        f"<tr><td>{html.escape(stage['stage'])}<br><small class=faint>{MEANINGS[stage['stage']]}</small>"
        f'<td class="number">{stage["documents"]:,}<td class="number">{stage["changed"]:,}'
        f'<td class="number">{stage["dropped"]:,}<td class="number">{stage["dropped_bytes"] / 1e6:,.2f}'
        f'<td class="bar"><div>{bar}</div>\n'
    )


def _examples(stage: dict[str, Any]) -> str:
    counts = {rule: documents for rule, (documents, _) in stage["rules"].items()}
    if stage["changed"]:
        counts = {"changed": stage["changed"]} | counts
    shown = []
    for rule, count in counts.items():
        examples = "".join(_example(rule, example) for example in stage["examples"].get(rule, []))
        title = f"{html.escape(stage['stage'])}: {html.escape(rule)}, {count:,} documents"
        shown.append(f"<details><summary>{title}</summary>{examples}</details>\n")
    return "".join(shown)


def _example(rule: str, example: dict[str, str]) -> str:
    name, text, found = (html.escape(example[key]) for key in ("name", "text", "found"))
    if rule == "changed":
        return f"<p class=faint>{name}, before and after<pre>{text}</pre><pre>{found}</pre>"
    if rule == "duplicate":
        return f"<p class=faint>{name}, which repeats the second<pre>{text}</pre><pre>{found}</pre>"
    return f"<p class=faint>{name}{': ' + found if found else ''}<pre>{text}</pre>"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"
