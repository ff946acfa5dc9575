"""`report.html`: a run on one page, in one file that needs nothing from outside."""

import html
import io
from pathlib import Path
from typing import Any

from shoal.core.files import read_json, write_text
from shoal.core.run_directory import RunDirectory
from shoal.tasks import LABELLED
from shoal.train.overfitting import Curves
from shoal.train.telemetry import read_metrics

STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2rem; font-size: 1.1rem }
.numbers { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1.2rem 0 }
.numbers b { display: block; font-size: 1.5rem } .numbers span { opacity: .7; font-size: .85rem }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem }
.charts svg { width: 100%; height: auto; background: #fff; border-radius: .4rem }
pre { background: #8881; padding: .8rem 1rem; border-radius: .4rem; overflow-x: auto; white-space: pre-wrap }
.prompt { font-weight: bold; color: #0a7d68 } details { margin-top: 1rem } td { padding: .1rem 1rem .1rem 0 }
"""

Records = list[dict[str, Any]]


def write_report(run: RunDirectory, samples: list[dict[str, str]]) -> None:
    """Draw the run's page from its files."""
    result = read_json(run.result)
    training, evaluations = read_metrics(run.metrics)
    title = html.escape(Path(result["run"]).name)
    numbers = [
        ("held-out loss", f"{result['eval_loss']:.4f}"),
        *([("bits per byte", f"{result['eval_bpb']:.3f}")] if "eval_bpb" in result else []),
        *([("right of the masked", f"{result['eval_accuracy']:.1%}")] if "eval_accuracy" in result else []),
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
{_verdict(result, training, evaluations)}
{"<h2>Ranks</h2><ul>" + events + "</ul>" if happened else ""}
{"<h2>Samples</h2>" + shown if samples else ""}
<h2>Machine</h2><table>{rows}</table>
<details><summary>Recipe</summary><pre>{html.escape(run.recipe.read_text(encoding="utf-8"))}</pre></details>
</html>
""",
    )


def _verdict(result: dict[str, Any], training: Records, evaluations: Records) -> str:
    """Of a run on labelled examples, which are read again and again: whether it learns them by heart."""
    said = Curves.of(training, evaluations).verdict() if result.get("task") in LABELLED else ""
    return f"<p>{html.escape(said)}</p>" if said else ""


def draw_charts(training: Records, evaluations: Records) -> list[str]:
    """Loss, throughput, learning rate and time a step, each an SVG text."""
    tokens = [record["tokens"] / 1e6 for record in training]

    def column(key: str) -> list[float]:
        return [record[key] for record in training]

    losses = [("training", tokens, column("loss"), "-")]
    if evaluations:
        at = [record["tokens"] / 1e6 for record in evaluations]
        losses.append(("held out", at, [record["eval_loss"] for record in evaluations], "o-"))
    waits = [
        (name, tokens, [1000 * value for value in column(key)], "-")
        for name, key in (("whole step", "step_seconds"), ("waiting for ranks", "sync_seconds"), ("data", "data_seconds"))
    ]
    return [
        draw_chart("Loss (nats a token)", losses),
        draw_chart("Tokens a second, all ranks", [("", tokens, column("tokens_per_second"), "-")], from_zero=True),
        draw_chart("Learning rate", [("", tokens, column("lr"), "-")], from_zero=True),
        draw_chart("Milliseconds a step", waits, from_zero=True),
    ]


def draw_chart(title: str, lines: list[tuple[str, list[float], list[float], str]], *, from_zero: bool = False) -> str:
    """One chart over millions of tokens, as an SVG text; lines are (name, x, y, format)."""
    import matplotlib  # takes a second to import: only when a page is drawn

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    for name, across, up, style in lines:
        axes.plot(across, up, style, label=name, linewidth=1.2, markersize=3)
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel("million tokens")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    shown = [value for _, _, up, _ in lines for value in up]
    if from_zero:
        # the first step compiles; it would flatten all the others
        axes.set_ylim(0, 1.3 * sorted(shown)[int(0.98 * (len(shown) - 1))] or 1)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=9)
    text = io.StringIO()
    figure.savefig(text, format="svg")
    pyplot.close(figure)
    return text.getvalue().partition("<!DOCTYPE")[2].partition(">")[2]
