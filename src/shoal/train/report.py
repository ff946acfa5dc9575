"""`report.html`: a run on one page, in one file that needs nothing from outside."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoal.core.figures import PLOTS, Plot
from shoal.core.files import read_json, write_text
from shoal.core.run_directory import RunDirectory
from shoal.train.charts import Line, draw_chart
from shoal.train.telemetry import read_metrics, told_figures

STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2rem; font-size: 1.1rem }
.numbers { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1.2rem 0 }
.numbers b { display: block; font-size: 1.5rem } .numbers span { opacity: .7; font-size: .85rem }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem }
.charts svg, .picture svg { max-width: 100%; height: auto; background: #fff; border-radius: .4rem }
.charts svg { width: 100% }
pre { background: #8881; padding: .8rem 1rem; border-radius: .4rem; overflow-x: auto; white-space: pre-wrap }
.prompt { font-weight: bold; color: #0a7d68 } details { margin-top: 1rem }
td, th { padding: .1rem 1rem .1rem 0; text-align: left; vertical-align: top } .figure { text-align: right }
"""

Records = list[dict[str, Any]]


def write_report(run: RunDirectory, samples: list[dict[str, str]], sections: Sequence[str] = ()) -> None:
    """Draw the run's page from its files; `sections`: what else is to stand on it, as HTML."""
    result = read_json(run.result)
    training, evaluations = read_metrics(run.metrics)
    title = html.escape(Path(result["run"]).name)
    numbers = [
        ("held-out loss", f"{result['eval_loss']:.4f}"),
        *((f"{before}{after}".strip(), value) for before, value, after in told_figures(result)),
        *((f"test, {before}{after}".strip(), value) for before, value, after in told_figures(result, split="test")),
        ("tokens", f"{result['tokens']:,}"),
        ("tokens/s", f"{result['tokens_per_second_median']:,.0f}"),
        ("MFU", f"{result['mfu_median']:.0%}"),
        ("parameters", f"{result['parameters'] / 1e6:.1f}M"),
        ("ranks × threads", f"{result['world_size']} × {result['threads']}"),
        ("time", f"{result['seconds']:.0f} s"),
    ]
    if result["world_size"] > 1:
        numbers += [
            ("sent by a rank", f"{result['wire_bytes'] / 1e6:,.1f} MB"),
            ("bits per parameter and step", f"{result['bits_per_parameter']:.2f}"),
            ("waiting for ranks", f"{result['sync_seconds']:.1f} s"),
        ]
    if best := result.get("best"):
        ended = ", stopped early" if result["stopped_early"] else ""
        numbers.append((f"best {best['metric']}, written{ended}", f"{best['best']:.4f} at step {best['best_step']:,}"))
    if "eval_raw_loss" in result:
        numbers.append(("held-out loss without averaging", f"{result['eval_raw_loss']:.4f}"))
    cards = "".join(f"<div><b>{value}</b><span>{name}</span></div>" for name, value in numbers)
    shown = "".join(
        f'<pre><span class="prompt">{html.escape(sample["prompt"])}</span>{html.escape(sample["text"])}'
        f'<span class="prompt">{html.escape(sample.get("after", ""))}</span></pre>'
        for sample in samples
    )
    happened = [*result.get("reformed", []), *result["stragglers"]]
    events = "".join(f"<li>{html.escape(text)}" for text in happened)
    machine = result["machine"] | {"matrix peak": f"{result['matrix_peak_flops'] / 1e9:,.0f} GFLOP/s",
                                   "peak memory a rank": f"{result['peak_memory_bytes'] / 1e9:.2f} GB"}  # fmt: skip
    rows = "".join(f"<tr><td>{html.escape(key)}<td>{html.escape(str(value))}" for key, value in machine.items())
    write_text(
        run.report,
        f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title} · Shoal</title><style>{STYLE}</style>
<h1>{title}</h1><p>{html.escape(result["finished"])}, Shoal {html.escape(result["shoal"])}</p>
<div class="numbers">{cards}</div>
<div class="charts">{"".join(draw_charts(training, evaluations))}</div>
{"".join(sections)}
{"<h2>Ranks</h2><ul>" + events + "</ul>" if happened else ""}
{"<h2>Samples</h2>" + shown if samples else ""}
<h2>Machine</h2><table>{rows}</table>
<details><summary>Recipe</summary><pre>{html.escape(run.recipe.read_text(encoding="utf-8"))}</pre></details>
</html>
""",
    )


def draw_charts(training: Records, evaluations: Records) -> list[str]:
    """The plots that a report has, each an SVG text."""
    return [_draw(plot, training, evaluations) for plot in PLOTS if plot.in_report]


def _draw(plot: Plot, training: Records, evaluations: Records) -> str:
    lines: list[Line] = []
    for line in plot.lines:
        evaluated = line.key.startswith("eval_")
        records = evaluations if evaluated else training
        if records:
            across = [record["tokens"] / 1e6 for record in records]
            values = [line.scale * record[line.key] for record in records]
            lines.append((line.name, across, values, "o-" if evaluated else "-"))
    return draw_chart(plot.title, lines, from_zero=plot.from_zero)
