"""The folder of a run, `runs/NAME/`: what lies where."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from shoal.core.errors import InputError
from shoal.core.files import make_folder

RUNS = Path("runs")
"""Where runs lie, unless --runs says otherwise."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths inside a run's folder."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.root / "recipe.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a logged step."""
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.root / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """What a run goes on from."""
        return self.root / "checkpoints"

    @property
    def ledger(self) -> Path:
        """Which rank has read what, up to the last checkpoint."""
        return self.root / "ledger.json"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer that a run from random weights has trained on its examples."""
        return self.root / "tokenizer"

    @property
    def model(self) -> Path:
        """The result, in the Hugging Face layout."""
        return self.root / "model"

    @property
    def adapter(self) -> Path:
        """What was trained beside a model's weights, as `peft` lays it out."""
        return self.root / "adapter"

    @property
    def result(self) -> Path:
        """The run's summary."""
        return self.root / "result.json"

    @property
    def predictions(self) -> Path:
        """What a fine-tuned model predicts of held-out examples, one JSON object each."""
        return self.root / "predictions.jsonl"

    @property
    def confusion(self) -> Path:
        """Which label a classifier takes for which, as a picture."""
        return self.root / "confusion.png"

    @property
    def report(self) -> Path:
        """The run's page."""
        return self.root / "report.html"

    def again(self, verb: str, ranks: int) -> str:
        """The command by which the run goes on."""
        words = ["shoal", verb, str(self.recipe), "--resume"]
        words += ["--workers", str(ranks)] if ranks > 1 else []
        words += ["--runs", str(self.root.parent)] if self.root.parent != RUNS else []
        return shlex.join(words)

    def claim(self, resume: bool, overwrite: bool) -> None:
        """Make the folder; `InputError` when a run is there already and neither flag says what to do with it."""
        if self.metrics.exists() and not resume and not overwrite:
            raise InputError(
                f"{self.root}: a run is there already; go on with it by --resume, start it anew by --overwrite, "
                "or choose another --name"
            )
        make_folder(self.root)
