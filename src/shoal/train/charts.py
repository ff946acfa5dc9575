"""Line charts, each an SVG text that stands in a page."""

import io
from typing import Any

Line = tuple[str, list[float], list[float], str]
"""(name, x, y, matplotlib's format)."""


def pyplot() -> Any:
    """matplotlib, which takes a second to import: only when something is drawn."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    return pyplot


def draw_chart(title: str, lines: list[Line], *, across: str = "million tokens", from_zero: bool = False) -> str:
    """One chart, over millions of tokens or whatever is said."""
    figure, axes = pyplot().subplots(figsize=(6, 3.4), layout="constrained")
    for name, x, y, style in lines:
        axes.plot(x, y, style, label=name, linewidth=1.2, markersize=3)
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(across)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    shown = [value for _, _, y, _ in lines for value in y]
    if from_zero:
        # the first step compiles; it would flatten all the others
        axes.set_ylim(0, 1.3 * sorted(shown)[int(0.98 * (len(shown) - 1))] or 1)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=9)
    return as_svg(figure)


def as_svg(figure: Any) -> str:
    """The figure as text, which is then closed."""
    text = io.StringIO()
    figure.savefig(text, format="svg")
    pyplot().close(figure)
    return text.getvalue().partition("<!DOCTYPE")[2].partition(">")[2]
