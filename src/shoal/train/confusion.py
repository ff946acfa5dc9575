"""Which label a model takes for which, as a picture: a row a true label, shaded by the share of it that was told so."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from shoal.core.files import write_bytes
from shoal.train.charts import as_svg, pyplot

NUMBERED = 20
"""Labels up to which every square has its number."""

NAMED = 60
"""Labels up to which their names stand at the axes."""


def draw_confusion(labels: list[str], matrix: list[list[int]], png: Path | None = None) -> str:
    """The picture as an SVG text; and, where asked, in a file, as PNG."""
    counts_LL = np.array(matrix)
    shares_LL = counts_LL / np.maximum(1, counts_LL.sum(1, keepdims=True))
    size = min(12.0, 2.8 + 0.42 * len(labels))
    figure, axes = pyplot().subplots(figsize=(size + 0.6, size), layout="constrained")
    axes.imshow(shares_LL, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="told", ylabel="true")
    places = range(len(labels)) if len(labels) <= NAMED else ()
    names = [_short(label) for label in labels] if len(labels) <= NAMED else ()
    axes.set_xticks(places, names, rotation=45 if len(labels) > 3 else 0, ha="right" if len(labels) > 3 else "center")
    axes.set_yticks(places, names)
    axes.tick_params(length=0, labelsize=9 if len(labels) <= NUMBERED else 6)
    axes.spines[:].set_visible(False)
    if len(labels) <= NUMBERED:
        for true, told in np.ndindex(counts_LL.shape):
            colour = "white" if shares_LL[true, told] > 0.55 else "black"
            axes.text(told, true, f"{counts_LL[true, told]:,}", ha="center", va="center", color=colour, fontsize=8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a label in a script that the font lacks
        if png is not None:
            write_bytes(png, _as_png(figure))
        return as_svg(figure)


def _as_png(figure: Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def _short(label: str) -> str:
    # a dollar would begin a formula
    return (label if len(label) <= 24 else f"{label[:23]}…").replace("$", r"\$")
