"""What `report.html` shows of a fine-tuned run beside what it shows of any: sections, as HTML, by task."""

import html
import json
from collections.abc import Callable, Mapping
from typing import Any

from shoal.core.recipe_file import read_recipe
from shoal.core.run_directory import RunDirectory
from shoal.train.charts import draw_chart
from shoal.train.confusion import draw_confusion
from shoal.train.figure_tables import SPLITS, most_confused
from shoal.train.overfitting import Curves, unlike
from shoal.train.telemetry import FIGURES, read_metrics

Result = Mapping[str, Any]

WRONG = 10
"""Wrong predictions that are shown."""

POINTS = 100
"""Points of the learning curve's training loss: means over equal parts of the run."""

LONGEST = 400
"""Characters of a text that are shown."""


def labelled_sections(run: RunDirectory, result: Result) -> list[str]:
    """The sections of a fine-tuned run's page; pictures that are files of their own are written beside it."""
    task = result["task"]
    return [learning_curve(run, result), *(SECTIONS[task](run, result) if task in SECTIONS else ())]


def learning_curve(run: RunDirectory, result: Result) -> str:
    """Loss in training and on held-out examples over epochs, the task's figures, and whether it learns them by heart."""
    training, evaluations = read_metrics(run.metrics)
    epochs = result["epochs"] / max(1, result["steps"])
    width = max(1, len(training) // POINTS)
    parts = [training[start : start + width] for start in range(0, len(training), width)]
    at = [epochs * part[-1]["step"] for part in parts]
    losses = [sum(record["loss"] for record in part) / len(part) for part in parts]
    evaluated = [epochs * record["step"] for record in evaluations]
    lines = [("training", at, losses, "-"), ("held out", evaluated, [record["eval_loss"] for record in evaluations], "o-")]
    if evaluations and "eval_minimised_loss" in evaluations[0]:
        minimised = [record["eval_minimised_loss"] for record in evaluations]
        lines.append(("held out, as minimised in training", evaluated, minimised, "o-"))
    charts = [draw_chart("Loss", lines, across="epochs")]
    names = [name for name in FIGURES if evaluations and all(f"eval_{name}" in record for record in evaluations)]
    if names:
        lines = [(_told(name), evaluated, [record[f"eval_{name}"] for record in evaluations], "o-") for name in names]
        charts.append(draw_chart("On held-out examples", lines, across="epochs"))
    said = Curves.of(training, evaluations, unlike(read_recipe(run.recipe))).verdict()
    verdict = f"<p>{html.escape(said)}</p>" if said else ""
    return f'<h2>Learning curve</h2>{verdict}<div class="charts">{"".join(charts)}</div>'


def _labels(run: RunDirectory, result: Result) -> list[str]:
    """Figures of each label."""
    split = "test" if "test_labels" in result else "eval"
    each = result[f"{split}_labels"]
    names = list(next(iter(each.values()), ()))
    rows = [[label, *(_figure(figures[name]) for name in names)] for label, figures in each.items()]
    return [f"<h2>Labels, on {SPLITS[split]} examples</h2>" + _table(["label", *names], rows, figures=len(names))]


def _classify(run: RunDirectory, result: Result) -> list[str]:
    """Figures of each label, what is taken for what, and what was told wrongly with most confidence."""
    split = "test" if "test_labels" in result else "eval"
    each, matrix = result[f"{split}_labels"], result.get(f"{split}_confusion")
    sections = _labels(run, result)
    if matrix:
        labels = list(each)
        picture = draw_confusion(labels, matrix, run.confusion)
        sections.append(f'<h2>What is taken for what</h2><div class="picture">{picture}</div>')
        confused = [[true, told, f"{count:,}"] for true, told, count in most_confused(labels, matrix, WRONG)]
        if len(labels) > 2 and confused:
            sections.append(_table(["true", "taken for", "times"], confused, figures=1))
    if wrong := _surest_mistakes(run):
        shown = [[_cut(text), true, told, f"{sure:.1%}"] for sure, text, true, told in wrong]
        sections.append("<h2>Wrong with most confidence</h2>" + _table(["text", "true", "told", "sure"], shown, figures=1))
    return sections


SECTIONS: dict[str, Callable[[RunDirectory, Result], list[str]]] = {"classify": _classify, "tag": _labels}
"""By task; others have the learning curve alone."""


def _surest_mistakes(run: RunDirectory) -> list[tuple[float, str, str, str]]:
    """(probability, text, what is true, what was told) of wrong predictions, the surest first."""
    wrong = []
    with run.predictions.open(encoding="utf-8") as lines:
        for line in lines:
            example = json.loads(line)
            prediction = example["prediction"]
            told, true = prediction.get("label", prediction.get("labels")), prediction["true"]
            if told == true:
                continue
            each = prediction["probabilities"]
            if isinstance(told, str):
                sure = each[told]
                names = (true, told)
            else:  # the label that is wrong by most
                sure = max(abs(each[label] - (label in true)) for label in each if (label in true) != (label in told))
                names = (", ".join(true) or "none", ", ".join(told) or "none")
            text = " ‖ ".join(str(example[role]) for role in ("text", "text_b") if example.get(role) is not None)
            wrong.append((sure, text, *names))
    return sorted(wrong, key=lambda one: -one[0])[:WRONG]


def _table(names: list[str], rows: list[list[str]], figures: int) -> str:
    """An HTML table, of which the last `figures` columns are numbers."""

    def cells(kind: str, row: list[str]) -> str:
        last = len(row) - figures
        marks = (' class="figure"' if place >= last else "" for place in range(len(row)))
        return "".join(f"<{kind}{mark}>{html.escape(cell)}" for mark, cell in zip(marks, row, strict=True))

    return f"<table><tr>{cells('th', names)}" + "".join(f"<tr>{cells('td', row)}" for row in rows) + "</table>"


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _told(name: str) -> str:
    return name.replace("_", " ")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
