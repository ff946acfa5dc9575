"""Draw who holds what and who sends what in each division: `bench/parallelism_picture.py docs/parallelism.png`."""

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

RANKS = 4
STATES = ("optimizer", "gradients", "parameters")
COLOURS = {"parameters": "#1f6f8b", "gradients": "#e08e45", "optimizer": "#6b8f4e"}


@dataclass(frozen=True)
class Mode:
    """One panel: of how many equal parts each rank holds one, by state, and what travels."""

    title: str
    parts: dict[str, int]
    sends: str


MODES = (
    Mode("replicate", dict.fromkeys(STATES, 1), "all-reduce of gradients"),
    Mode(
        "zero1", {"parameters": 1, "gradients": 1, "optimizer": 4}, "reduce-scatter of gradients,\nall-gather of new weights"
    ),
    Mode("zero2", dict.fromkeys(STATES, 4), "all-gather of weights (kept for backward),\nreduce-scatter of gradients"),
    Mode("zero3", dict.fromkeys(STATES, 4), "all-gather of a block's weights, twice,\nreduce-scatter of gradients"),
    Mode(
        "zero3, shard_ranks 2",
        dict.fromkeys(STATES, 2),
        "zero3 within {0, 1} and {2, 3}; all-reduce\nof gradient shards between them",
    ),
    Mode("tensor 4", dict.fromkeys(STATES, 4), "all-reduce of activations, two a block\nforward and two backward"),
)


def draw(axes: Axes, mode: Mode) -> None:
    """Columns are ranks, rows are states; what is filled is held between steps."""
    for rank in range(RANKS):
        for row, state in enumerate(STATES):
            parts = mode.parts[state]
            axes.add_patch(Rectangle((rank, row), 0.86, 0.86, facecolor="none", edgecolor="#b5b5b5", linewidth=0.8))
            left = rank + (rank % parts) * 0.86 / parts
            axes.add_patch(Rectangle((left, row), 0.86 / parts, 0.86, facecolor=COLOURS[state]))
        axes.text(rank + 0.43, -0.28, f"rank {rank}", ha="center", va="center", fontsize=8)
    axes.set_title(mode.title, loc="left", fontsize=11, fontweight="bold")
    axes.text(0, -0.6, mode.sends, va="top", fontsize=8.5)
    axes.set_xlim(-0.05, RANKS)
    axes.set_ylim(-1.6, len(STATES))
    axes.axis("off")


def main(picture: Path) -> None:
    """All panels in one figure."""
    figure, grid = pyplot.subplots(2, 3, figsize=(11, 6.2), layout="constrained", dpi=110)
    for axes, mode in zip(grid.flat, MODES, strict=True):
        draw(axes, mode)
    handles = [Rectangle((0, 0), 1, 1, facecolor=COLOURS[state]) for state in STATES[::-1]]
    figure.legend(handles, STATES[::-1], loc="outside upper right", ncols=3, frameon=False, fontsize=9)
    figure.savefig(picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
