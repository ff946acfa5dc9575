"""`tokenizer-report.html`: what a tokenizer makes of a corpus, on one page that needs nothing from outside."""

import html
from typing import Any

REPORT = "tokenizer-report.html"

STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2rem; font-size: 1.1rem }
.numbers { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1.2rem 0 }
.numbers b { display: block; font-size: 1.5rem } .numbers span { opacity: .7; font-size: .85rem }
td, th { padding: .1rem 1.5rem .1rem 0; text-align: right } td:first-child, th:first-child { text-align: left }
code { background: #8882; border-radius: .2rem; padding: 0 .3rem; white-space: pre-wrap; overflow-wrap: anywhere }
"""

VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥"})
LONGEST_SHOWN = 80


def tokenizer_page(report: dict[str, Any]) -> str:
    """The page of a report (`tokenizer_report.report_on`)."""
    numbers = [
        ("bytes a token", f"{report['bytes_per_token']:.2f}"),
        ("tokens in the vocabulary", f"{report['vocabulary']:,}"),
        ("of them occur in the training text", f"{report['used_share']:.1%}"),
    ]
    if report["unknown_share"]:
        numbers.append(("of the text's tokens are unknown", f"{report['unknown_share']:.2%}"))
    cards = "".join(f"<div><b>{value}</b><span>{meaning}</span></div>" for meaning, value in numbers)
    scripts = "".join(
        f"<tr><td>{html.escape(row['script'])}<td>{row['share']:.1%}<td>{row['bytes_per_token']:.2f}"
        f"<td>{row['fertility']:.2f} a {row['per']}"
        for row in report["scripts"]
    )
    longest = "".join(
        f"<tr><td><code>{html.escape(row['text'][:LONGEST_SHOWN].translate(VISIBLE))}</code>"
        f"<td>{row['bytes']}<td>{row['count']:,}"
        for row in report["longest"]
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Tokenizer · Shoal</title><style>{STYLE}</style>
<h1>Tokenizer</h1>
<div class="numbers">{cards}</div>
<h2>Scripts, on {report["sample_bytes"] / 1e6:.1f} MB of the text</h2>
<table><tr><th>script<th>of the text<th>bytes a token<th>tokens{scripts}</table>
<h2>Longest tokens</h2>
<table><tr><th>token<th>bytes<th>times in the training text{longest}</table>
</html>
"""


def tokenizer_lines(report: dict[str, Any]) -> list[str]:
    """The report in a line or two, for a terminal."""
    scripts = "; ".join(f"{row['script']} {row['fertility']:.2f} tokens a {row['per']}" for row in report["scripts"][:6])
    unknown = f", {report['unknown_share']:.2%} of tokens unknown" if report["unknown_share"] else ""
    return [
        f"tokenizer: {report['bytes_per_token']:.2f} bytes a token, "
        f"{report['used_share']:.1%} of its vocabulary in use{unknown}",
        *([scripts] if scripts else []),
    ]
