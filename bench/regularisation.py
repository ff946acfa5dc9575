"""What keeps a model from learning its text by heart: one model, a few pages of Shakespeare, each means alone and together.

All variants read the same text in the same order, as often; what is held out is the end of the whole text, far from what is
read. Told are the training loss of the last step (which counts label smoothing and z-loss, and is of dropped-out passes),
the best held-out loss on the way, and the held-out loss of the model that is written: without patience the last, with it
the best.
"""

import os
from collections.abc import Callable
from pathlib import Path

import tyro

from report import ROOT, SCRATCH, Result, median, publish, run_json, shoal_command, shown, take_turns

RECIPE = ROOT / "bench" / "regularisation.yaml"
HELD_OUT = 30_000
DROPOUT = ("--model.dropout", 0.2)
DECAY = ("--optimizer.weight_decay", 0.5)
AVERAGE = ("--regular.ema", 0.99)
PATIENCE = ("--evaluation.patience", 4)
VARIANTS: dict[str, tuple[object, ...]] = {
    "nothing": (),
    "weight decay 0.5 (decoupled L2)": DECAY,
    "L2 in the gradients, 0.001": ("--regular.l2", 0.001, "--regular.decoupled", "false"),
    "L1 0.05": ("--regular.l1", 0.05),
    "dropout 0.2": DROPOUT,
    "dropout 0.2, attention kept": (*DROPOUT, "--model.attention_dropout", 0.0),
    "layer drop 0.2": ("--model.layer_drop", 0.2),
    "label smoothing 0.1": ("--regular.label_smoothing", 0.1),
    "z-loss 1e-4": ("--regular.z_loss", 1e-4),
    "average of weights 0.99": AVERAGE,
    "patience 4": PATIENCE,
    "dropout, decay, average, patience": (*DROPOUT, *DECAY, *AVERAGE, *PATIENCE),
}


def contender(name: str, common: tuple[object, ...]) -> Callable[[int], Result]:
    def measure(round_number: int) -> Result:
        seed = ("--seed", round_number + 1)
        return run_json(shoal_command("pretrain", RECIPE, "--overwrite", "--json", *seed, *common, *VARIANTS[name]))

    return measure


def best_on_the_way(result: Result) -> float:
    return min(loss for _, loss in result["evaluations"])


def row(name: str, results: list[Result]) -> list[str]:
    return [
        name,
        shown(median(results, "loss"), "{:.3f}"),
        shown(sum(map(best_on_the_way, results)) / len(results), "{:.3f}"),
        shown(median(results, "eval_loss"), "{:.3f}"),
        shown(median(results, "steps"), "{:,.0f}"),
        shown(median(results, "seconds"), "{:.0f} s"),
    ]


def main(text: Path | None = None, characters: int = 60_000, tokens: int = 1_200_000, rounds: int = 2) -> None:
    """Train every variant and write bench/results/regularisation.json and regularisation.md.

    Args:
        text: tinyshakespeare, one file of text; none: what SHOAL_TINYSHAKESPEARE names.
        characters: How much of its beginning is read.
        tokens: How much is read in all.
        rounds: Seeds.
    """
    text = text or Path(os.environ.get("SHOAL_TINYSHAKESPEARE", "tinyshakespeare.txt"))
    if not text.is_file():
        raise SystemExit(f"no file {text}: give tinyshakespeare's text by --text FILE or SHOAL_TINYSHAKESPEARE")
    whole, folder = text.read_text(encoding="utf-8"), SCRATCH / "regularisation"
    folder.mkdir(parents=True, exist_ok=True)
    part, corpus = folder / f"{characters}.txt", folder / f"corpus-{characters}"
    part.write_text(whole[:characters] + whole[-HELD_OUT:], encoding="utf-8")
    share = ("--data.held_out", HELD_OUT / (characters + HELD_OUT))
    common = ("--data.directory", corpus, "--data.sources", f'["{part}"]', *share, "--train.tokens", tokens)
    run_json(shoal_command("prepare", RECIPE, "--json", *common))
    results = take_turns({name: contender(name, common) for name in VARIANTS}, rounds)
    columns = ["", "training loss at the end", "best held-out loss", "held-out loss of what is written", "steps", "training"]
    notes = [
        f"{characters:,} characters read {tokens / characters:.0f} times, by {results['nothing'][0]['parameters']:,} "
        f"parameters; medians of {rounds} seeds. Held-out losses on the way are of a sample; where patience chose by it, "
        "what is written was chosen on what is reported."
    ]
    rows = [row(name, ran) for name, ran in results.items()]
    publish("regularisation", "What keeps a model from learning its text by heart", columns, rows, notes, results)


if __name__ == "__main__":
    tyro.cli(main)
