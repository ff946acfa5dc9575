"""Loss against wall-clock time, a panel a link, and against bytes, in one PNG.

Time is in runs of the ideal: a method that has 50% of ideal speed on a link needs 2 for the same steps.
"""

from pathlib import Path
from typing import Any

from shoal.bench.raw import Raw, Row


def draw(raw: Raw, hosts: int, path: Path) -> None:
    """Draw what has both a loss and speeds; the lowest seed stands for all."""
    import matplotlib  # takes a second to import

    matplotlib.use("agg")
    from matplotlib import pyplot

    trained = [row for row in raw.rows if (row["kind"], row["hosts"]) == ("loss", hosts)]
    losses = {row["method"]: row for row in sorted(trained, key=lambda row: row["seed"], reverse=True)}
    speeds = [row for row in raw.rows if (row["kind"], row["hosts"]) == ("speed", hosts)]
    colours = {method: f"C{index}" for index, method in enumerate(sorted(losses))}
    links = sorted({row["megabits"] for row in speeds if row["megabits"] and row["method"] in losses}, reverse=True)
    count = len(links) + 1
    width = max(4.2 * count, 6.0)  # a single panel has to hold its legend
    figure, (panels,) = pyplot.subplots(1, count, figsize=(width, 4), layout="constrained", sharey=True, squeeze=False)
    for panel, megabits in zip(panels, links, strict=False):
        for row in speeds:
            if row["megabits"] == megabits and row["method"] in losses:
                loss, share = losses[row["method"]], raw.share(row)
                if share:
                    _line(panel, loss, colours, [step / loss["steps"] / share for step, _ in loss["curve"]])
        _label(panel, f"{megabits:g} Mbit/s", "time, in runs of the ideal")
    for loss in losses.values():
        _line(panels[-1], loss, colours, [step * loss["wire_bytes"] / 1e6 for step, _ in loss["curve"]])
    _label(panels[-1], "whatever the link", "megabytes sent by a rank")
    panels[0].set_ylabel("held-out loss (nats a token)")
    panels[-1].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _line(panel: Any, loss: Row, colours: dict[str, str], across: list[float]) -> None:
    method = loss["method"]
    panel.plot(across, [value for _, value in loss["curve"]], color=colours[method], label=method, linewidth=1.2)


def _label(panel: Any, title: str, across: str) -> None:
    panel.set_title(title, fontsize=11, loc="left")
    panel.set_xlabel(across)
    panel.set_xscale("log")
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
