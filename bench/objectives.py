"""What masked and infill models have learnt, next to what counting, or a model that sees only the left side, knows.

`masked`: the share of masked tokens of held-out files that the model of `recipes/bert-demo.yaml` finds, next to the
commonest token, to the likeliest one after its left neighbour, and to the likeliest between its two neighbours (both counted
on the training text, smoothed by the token's own frequency). The neighbours are those that the model reads, masks and all;
and, for an easier question than the model's, the true ones. A picture of the loss curve is drawn.

`infill`: one line is blanked out of held-out files. The model of `recipes/infill-demo.yaml` sees what is before and after;
a causal model of the same shape, corpus, steps and batch sees what is before, as much of it as its context holds. Both are
scored on the same tokens: how often the greedy line is exactly the one that was there, and the bits that the line's bytes
cost. A line is the tokens between two that hold a line end, so its indentation is given to both, and no token is cut.
"""

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import matplotlib
import numpy as np
import torch
import tyro

from report import ROOT, Result, progress, publish, run_json, shoal_command
from shoal.core.recipe_file import read_recipe
from shoal.core.run_directory import RunDirectory
from shoal.data.batches import evaluation_rows
from shoal.data.plan import plan_evaluation
from shoal.data.shards import Corpus
from shoal.data.words import Words
from shoal.models.loss import IGNORED
from shoal.serve.filling import lay_out, read_layout
from shoal.serve.generation import LanguageModel, load_language_model
from shoal.tasks import TASKS
from shoal.train.telemetry import read_metrics

matplotlib.use("agg")
from matplotlib import pyplot

BATCH = 16
LINE = 40
"""Tokens of the context that are kept for a line and what marks it."""
RUNS = ROOT / "runs"


def trained(recipe: Path, name: str, steps: int, workers: int, fresh: bool, *words: str) -> Result:
    """The result of a run of the recipe, which is trained if it isn't there; `steps` 0: for as long as the recipe says."""
    run = RunDirectory(RUNS / name)
    if run.result.exists() and not fresh:
        return json.loads(run.result.read_text())
    run_json(shoal_command("prepare", recipe, "--json"))
    limit = ("--train.steps", steps, "--train.minutes", 0) if steps else ()
    command = shoal_command(
        "pretrain", recipe, "--json", "--workers", workers, "--overwrite", "--name", name, *limit, *words
    )
    with progress.status(f"training {name}"):
        return run_json(command)


# ── masked ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Counts:
    """How often tokens occur, alone and in pairs [left, right], in the training text."""

    single: torch.Tensor
    pairs: torch.Tensor

    @classmethod
    def of(cls, corpus: Corpus) -> "Counts":
        stream, size = corpus.split("train"), corpus.vocabulary
        pairs = np.zeros(size * size, dtype=np.int64)
        for start in range(0, stream.tokens - 1, 1 << 20):
            tokens = stream.windows(np.array([start]), min((1 << 20) + 1, stream.tokens - start))[0].astype(np.int64)
            np.add.at(pairs, tokens[:-1] * size + tokens[1:], 1)
        whole = torch.from_numpy(pairs).view(size, size).float()
        return cls(whole.sum(0) + 1, whole)

    def log_probabilities(self, left: torch.Tensor, right: torch.Tensor | None, mask: int) -> torch.Tensor:
        """[places, vocabulary]: after the left neighbour, or between both, as if these were independent given the token.

        A neighbour that is a mask says nothing.
        """
        share = self.single / self.single.sum()
        after = ((self.pairs[left] + 10 * share) / (self.pairs[left].sum(1, keepdim=True) + 10)).log()
        after = torch.where((left == mask)[:, None], share.log(), after)
        if right is None:
            return after
        before = ((self.pairs[:, right].T + 10 * share[right][:, None]) / (self.single + 10)).log()
        return (after + before.masked_fill((right == mask)[:, None], 0.0)).log_softmax(-1)


def masked_places(run: RunDirectory, corpus: Corpus, limit: int) -> tuple[LanguageModel, list[Any], list[np.ndarray]]:
    """(the model, batches of the held-out split as evaluation masks them, their rows as they were)."""
    recipe = read_recipe(run.recipe)
    language = load_language_model(run.root)
    task = TASKS["masked"](recipe, language.tokenizer, [corpus.split("held_out")])
    rows = next(iter(plan_evaluation(recipe, [corpus], language.model.config.context, task.framing).values())).rows
    sequences = list(evaluation_rows(rows, BATCH, 0, 1, limit))
    return language, [task.batch(one, torch.device("cpu")) for one in sequences], [one.tokens for one in sequences]


@torch.no_grad()
def measure_masked(run: RunDirectory, limit: int, special: set[int]) -> Result:
    """Right answers and nats of the model and of the counts, at the same masked places."""
    corpus = Corpus.open(Path(read_recipe(run.recipe).corpus_directory))
    counts = Counts.of(corpus)
    counts.single[list(special)] = 1e-3
    language, batches, rows = masked_places(run, corpus, limit)
    names = ("model", "unigram", "left", "both", "true")
    right, nats = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    mask = language.tokenizer.special("mask")
    places = 0
    share = (counts.single / counts.single.sum()).log()
    for batch, tokens in zip(batches, rows, strict=True):
        row, place = np.nonzero(batch.targets.numpy() != IGNORED)
        inner = (place > 0) & (place < tokens.shape[1] - 1)
        row, place = row[inner], place[inner]
        inner = (tokens[row, place - 1] >= 0) & (tokens[row, place + 1] >= 0)
        row, place = row[inner], place[inner]
        targets = batch.targets[row, place]
        true_left, true_right = (torch.from_numpy(tokens[row, place + step].astype(np.int64)) for step in (-1, 1))
        left, after = (batch.tokens[row, place + step] for step in (-1, 1))
        hidden = language.model(batch.tokens, reach=batch.reach)
        found = {
            "model": language.model.project(hidden[row, place]).log_softmax(-1),
            "unigram": share.expand(len(row), -1),
            "left": counts.log_probabilities(left, None, mask),
            "both": counts.log_probabilities(left, after, mask),
            "true": counts.log_probabilities(true_left, true_right, mask),
        }
        for name, scores in found.items():
            right[name] += float((scores.argmax(-1) == targets).sum())
            nats[name] -= float(scores[torch.arange(len(targets)), targets].sum())
        places += len(targets)
    return {
        "places": places,
        "accuracy": {k: v / places for k, v in right.items()},
        "nats": {k: v / places for k, v in nats.items()},
    }


def draw_masked(run: RunDirectory, measured: Result, picture: Path) -> None:
    """The loss curve, and the losses of counting as lines."""
    training, evaluations = read_metrics(run.metrics)
    figure, axes = pyplot.subplots(figsize=(8, 3.6), layout="constrained", dpi=120)
    axes.plot(
        [line["tokens"] / 1e6 for line in training], [line["loss"] for line in training], linewidth=0.8, label="training"
    )
    axes.plot(
        [line["tokens"] / 1e6 for line in evaluations], [line["eval_loss"] for line in evaluations], "o-", markersize=3,
        label=f"held-out files, {measured['accuracy']['model']:.0%} of masked tokens right at the end",
    )  # fmt: skip
    for name, style in (("unigram", ":"), ("both", "--")):
        words = "how often tokens occur" if name == "unigram" else "both neighbours, counted"
        label = f"{words}: {measured['accuracy'][name]:.0%} right"
        axes.axhline(measured["nats"][name], color="gray", linestyle=style, linewidth=1, label=label)
    axes.set_xlabel("million tokens")
    axes.set_ylabel("loss (nats a masked token)")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(picture)


def masked(recipe: Path, name: str, steps: int, workers: int, limit: int, fresh: bool) -> None:
    result = trained(recipe, name, steps, workers, fresh)
    run = RunDirectory(RUNS / name)
    special = set(load_language_model(run.root).tokenizer.special_tokens.values())
    measured = measure_masked(run, limit, special)
    words = {
        "model": f"the model, {result['parameters'] / 1e6:.1f}M parameters",
        "true": "counts: both neighbours, even where the model reads a mask",
        "both": "counts: both neighbours",
        "left": "counts: left neighbour",
        "unigram": "counts: the commonest token",
    }
    rows = [[text, f"{measured['accuracy'][key]:.1%}", f"{measured['nats'][key]:.3f}"] for key, text in words.items()]
    notes = [
        f"{measured['places']:,} masked tokens of held-out files, the same for all.",
        f"Trained {result['steps']:,} steps, {result['tokens']:,} tokens, in {result['seconds']:.0f} s on "
        f"{result['world_size']} ranks × {result['threads']} threads.",
    ]
    notes += [
        f"{sample['prompt']!r}: {'; '.join(line.strip() for line in sample['text'].strip().splitlines())}"
        for sample in result.get("samples", [])
    ]
    columns = ["", "found", "nats a token"]
    publish(
        "masked-accuracy",
        "Masked tokens found, held-out Python",
        columns,
        rows,
        notes,
        {"masked": [result | measured]},
        "objectives",
    )
    draw_masked(run, measured, ROOT / "docs" / "masked-loss.png")


# ── infill ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Blank:
    """A line of a document: what is before it, its tokens, and what is after, from the line end on."""

    left: list[int]
    line: list[int]
    right: list[int]


def find_blanks(corpus: Corpus, language: LanguageModel, most: int, context: int) -> list[Blank]:
    """At most so many lines of held-out documents, evenly spread: of 3 to 24 tokens, at least 24 on each side."""
    stream = corpus.split("held_out")
    tokens = stream.windows(np.array([0]), stream.tokens)[0].astype(np.int64)
    tokenizer = language.tokenizer
    has_end = np.array(["\n" in tokenizer.decode([token]) for token in range(tokenizer.vocabulary)])
    found = []
    borders = np.flatnonzero(tokens == tokenizer.end_of_text)
    for begin, end in zip(np.concatenate(([-1], borders[:-1])) + 1, borders, strict=True):
        document = tokens[begin:end]
        edges = np.flatnonzero(has_end[document])
        for low, high in pairwise(edges):
            if 3 <= high - low - 1 <= 24 and low >= 24 and len(document) - high >= 24:
                room = context - LINE
                left, right = document[max(0, low + 1 - room) : low + 1], document[high : high + room // 2]
                found.append(Blank(left.tolist(), document[low + 1 : high].tolist(), right.tolist()))
    chosen = np.linspace(0, len(found) - 1, min(most, len(found))).astype(int)
    return [found[index] for index in chosen]


@torch.inference_mode()
def fill(language: LanguageModel, blank: Blank, layout: Any) -> tuple[bool, float]:
    """(whether the greedy line is the one that was there, the nats of its tokens)."""
    model, tokenizer = language.model, language.tokenizer
    assert layout != "spans", "the prefix would need a reach of its own"
    before = blank.left
    if layout is not None:
        half = (model.config.context - LINE) // 2
        before = lay_out(language, blank.left[-half:], blank.right, layout)[0]
    logits = model.project(model(torch.tensor([before + blank.line])))[0, len(before) - 1 :].float()
    logits = logits[:, : tokenizer.vocabulary]
    scores = logits[:-1].log_softmax(-1)
    line = torch.tensor(blank.line)
    nats = -float(scores[torch.arange(len(line)), line].sum())
    # greedy decoding reproduces the line exactly where every token is the likeliest, and an end comes after
    ends = (
        "\n" in tokenizer.decode([int(logits[-1].argmax())]) or int(logits[-1].argmax()) in tokenizer.special_tokens.values()
    )
    return bool((scores.argmax(-1) == line).all()) and ends, nats


def measure_infill(run: RunDirectory, lines: int) -> Result:
    """Exact matches and bits a byte of blanked-out lines."""
    corpus = Corpus.open(Path(read_recipe(run.recipe).corpus_directory))
    language = load_language_model(run.root)
    layout = read_layout(run.root)
    sizes = Words.of(language.tokenizer).bytes
    blanks = find_blanks(corpus, language, lines, language.model.config.context)
    exact, nats, size = 0, 0.0, 0
    for blank in blanks:
        same, cost = fill(language, blank, layout)
        exact, nats, size = exact + same, nats + cost, size + int(sizes[blank.line].sum())
    return {"lines": len(blanks), "exact": exact / len(blanks), "bpb": nats / math.log(2) / size, "bytes": size}


def infill(recipe: Path, name: str, steps: int, workers: int, lines: int, fresh: bool) -> None:
    filled = trained(recipe, name, steps, workers, fresh)
    # the same corpus, whose tokenizer has tokens that the causal model never sees, and as many steps
    causal = trained(
        recipe, f"{name}-causal", filled["steps"], workers, fresh, "--task", "causal", "--samples.prompts", "[]"
    )
    results = {
        "fills in, sees both sides": filled | measure_infill(RunDirectory(RUNS / name), lines),
        "causal, sees the left side": causal | measure_infill(RunDirectory(RUNS / f"{name}-causal"), lines),
    }
    rows = [
        [key, f"{found['exact']:.1%}", f"{found['bpb']:.3f}", f"{found['steps']:,}", f"{found['parameters'] / 1e6:.1f}M"]
        for key, found in results.items()
    ]
    some = next(iter(results.values()))
    notes = [
        f"{some['lines']:,} lines ({some['bytes']:,} bytes) of held-out files, the same for both; greedy; bits a byte of "
        "the line's tokens.",
        f"Trained in {filled['seconds']:.0f} and {causal['seconds']:.0f} s on {filled['world_size']} ranks × "
        f"{filled['threads']} threads.",
    ]
    notes += [
        f"{sample['prompt']!r} **{sample['text']!r}** {sample.get('after', '')!r}" for sample in filled.get("samples", [])
    ]
    columns = ["", "exactly the line", "bits a byte", "steps", "parameters"]
    publish(
        "infill",
        "A blanked-out line of Python",
        columns,
        rows,
        notes,
        {key: [found] for key, found in results.items()},
        "objectives",
    )


def main(
    what: Annotated[Literal["masked", "infill"], tyro.conf.Positional],
    steps: int = 0,
    workers: int = 2,
    limit: int = 0,
    lines: int = 1000,
    name: str = "",
    recipe: Path | None = None,
    fresh: bool = False,
) -> None:
    """Train, measure and write bench/results/masked-accuracy or infill (.json, .md).

    Args:
        what: Which objective.
        steps: Optimizer steps instead of the recipe's minutes.
        workers: Ranks to train with.
        limit: `masked`: held-out sequences that are read; 0: all.
        lines: `infill`: blanked-out lines, at most.
        name: Of the run in runs/; by default the recipe's. One that is finished is measured again, not trained.
        recipe: Another recipe than recipes/bert-demo.yaml or infill-demo.yaml.
        fresh: Train even so.
    """
    recipe = recipe or ROOT / "recipes" / ("bert-demo.yaml" if what == "masked" else "infill-demo.yaml")
    name = name or recipe.stem
    if what == "masked":
        masked(recipe, name, steps, workers, limit, fresh)
    else:
        infill(recipe, name, steps, workers, lines, fresh)


if __name__ == "__main__":
    tyro.cli(main)
