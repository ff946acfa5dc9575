"""Draw the loss curve of a run as a PNG, for the README: `bench/picture.py runs/demo docs/demo-loss.png`."""

import sys
from pathlib import Path

import matplotlib

from shoal.core.files import read_json
from shoal.core.run_directory import RunDirectory
from shoal.train.telemetry import read_metrics

matplotlib.use("agg")
from matplotlib import pyplot


def draw(run: RunDirectory, picture: Path) -> None:
    """Training and held-out loss over tokens."""
    training, evaluations = read_metrics(run.metrics)
    result = read_json(run.result)
    figure, axes = pyplot.subplots(figsize=(8, 3.6), layout="constrained", dpi=120)
    axes.plot(
        [line["tokens"] / 1e3 for line in training], [line["loss"] for line in training], linewidth=0.9, label="training"
    )
    axes.plot(
        [line["tokens"] / 1e3 for line in evaluations],
        [line["eval_loss"] for line in evaluations],
        "o-",
        markersize=4,
        label=f"held-out files, {result['eval_loss']:.2f} at the end ({result['eval_bpb']:.2f} bits per byte)",
    )
    axes.set_xlabel("thousand tokens")
    axes.set_ylabel("loss (nats a token)")
    axes.set_title(
        f"{result['parameters'] / 1e6:.1f}M parameters on {result['world_size']} ranks, {result['seconds']:.0f} s on "
        f"{result['machine']['cpu']}",
        loc="left",
        fontsize=10,
    )
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(picture)


if __name__ == "__main__":
    draw(RunDirectory(Path(sys.argv[1])), Path(sys.argv[2]))
