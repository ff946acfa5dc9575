"""Loss against learning rate, and the rate that is suggested, in one PNG."""

import io
from pathlib import Path

from shoal.core.files import write_bytes
from shoal.train.finder import Curve, Suggestion


def draw(curve: Curve, suggestion: Suggestion, rate: float, path: Path) -> None:
    """Draw the curve over the recipe's `rate` times its shares."""
    import matplotlib  # takes a second to import

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    rates = [rate * share for share in curve.shares]
    axes.plot(rates, curve.losses, color="0.75", linewidth=1, label="each step")
    axes.plot(rates, curve.smoothed, color="C0", linewidth=1.6, label="smoothed")
    axes.axvline(rate * suggestion.share, color="C2", label=f"suggested {rate * suggestion.share:.2g}")
    axes.axvline(rate, color="C1", linestyle=":", label=f"the recipe's {rate:.2g}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss (nats a target)")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    pyplot.close(figure)
    write_bytes(path, content.getvalue())
