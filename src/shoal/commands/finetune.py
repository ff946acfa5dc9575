"""Adapt a model to a task by labelled examples, over any number of ranks.

    shoal finetune --task classify --model path/to/bert --data train.tsv
    shoal finetune recipes/sst2.yaml --model path/to/minilm --data train.tsv --examples.validation dev.tsv --workers 2
    shoal finetune recipes/sst2.yaml --model path/to/minilm --data train.tsv --tuning.what frozen --seeds 5
    shoal finetune recipes/sst2.yaml --model path/to/minilm --data train.tsv --search 20

The run's folder, runs/NAME, holds the best model in the Hugging Face layout, its predictions on held-out examples, metrics,
checkpoints and report.html. Ctrl-C saves and leaves; --resume goes on. `shoal evaluate runs/NAME` gives the same figures.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from shoal.core.errors import InputError
from shoal.core.machine import command_started
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import read_recipe
from shoal.core.run_directory import RunDirectory
from shoal.parallel.world import is_rank
from shoal.tasks import LABELLED
from shoal.train.cluster import check_cluster, train_on_servers
from shoal.train.figure_tables import figure_tables
from shoal.train.finetune import Examined, check_finetuning, examine, finetuning, finetuning_defaults
from shoal.train.labelled_report import labelled_sections
from shoal.train.material import Gather
from shoal.train.overfitting import Curves, unlike
from shoal.train.repeats import run_seeds
from shoal.train.report import write_report
from shoal.train.run import Session, run_training
from shoal.train.search import search
from shoal.train.start import Start, StartOptions, run_on_ranks
from shoal.train.telemetry import describe_metrics, read_metrics

SHORT = {"--model": "--model.init_from", "--data": "--examples.train", "--on-error": "--examples.on_error"}
"""Recipe keys that go without their section here."""


@dataclass(frozen=True)
class Arguments(StartOptions):
    """Options of `shoal finetune`."""

    recipe: Annotated[Path | None, tyro.conf.Positional] = None
    """A recipe file; keys that it doesn't give keep their defaults."""
    seeds: int | None = None
    """Run with so many seeds, and tell mean and deviation."""
    search: int | None = None
    """Look for better hyper-parameters in so many trials: those of the recipe's `search`, or the usual ones."""


def run(arguments: Arguments, overrides: list[str]) -> dict[str, Any] | None:
    """Fine-tune; returns the run's result, or what several runs come to; None on ranks that don't speak."""
    command_started()
    start = Start.of("finetune", arguments)
    recipe = read_recipe(arguments.recipe, overrides, finetuning_defaults)
    check_finetuning(recipe)
    start.workers.check(recipe)
    check_cluster(recipe, start.workers.most, start.workers.elastic)
    if arguments.seeds is None and arguments.search is None:
        result = _finetune(start, recipe)
        if result is not None and not arguments.json:
            _tell(RunDirectory(arguments.runs / recipe.name), result)
        return result
    if is_rank() or start.resume or (arguments.seeds is not None and arguments.search is not None):
        raise InputError("--seeds and --search start runs of their own, one after the other: give one, without --resume")

    def train(one: Recipe) -> dict[str, Any]:
        check_cluster(one, start.workers.most, start.workers.elastic)  # a trial's batch is another
        result = _finetune(replace(start, overwrite=True), one)
        assert result is not None
        return result

    console = Console(stderr=True, highlight=False, quiet=arguments.json)
    if arguments.seeds is not None:
        summary = run_seeds(recipe, arguments.seeds, arguments.runs, train, start.overwrite)
        _tell_figures(console, summary["figures"], arguments.seeds)
        return summary
    assert arguments.search is not None
    metric = recipe.evaluation.metric if recipe.evaluation.metric != "auto" else LABELLED[recipe.task].metric
    summary = search(recipe, arguments.search, arguments.runs, metric, train, console.print)
    console.print(
        f"\nbest of {len(summary['trials'])}: {metric} {summary['best'][metric]:.4f}\nagain with: {summary['again']}"
    )
    return summary


def _finetune(start: Start, recipe: Recipe) -> dict[str, Any] | None:
    """One run, with its report."""
    examined: list[Examined] = []  # where this process trains, it need not read all of it again

    def gather(folder: RunDirectory) -> Gather:
        return partial(finetuning, run=folder, examined=examined.pop() if examined else None, quiet=start.quiet)

    result = run_on_ranks(
        start,
        recipe,
        check=lambda: examined.append(examine(recipe)),
        train=lambda folder, resume: run_training(recipe, Session(folder, resume, start.quiet), gather(folder)),
        serve=lambda folder, resume: train_on_servers(
            recipe,
            Session(folder, resume, start.quiet),
            start.workers.most,
            gather(folder),
            elsewhere=partial(finetuning, run=folder, quiet=True),
        ),
    )
    if result is not None:
        folder = RunDirectory(start.runs / recipe.name)
        write_report(folder, [], labelled_sections(folder, result))
    return result


def _tell_figures(console: Console, figures: dict[str, dict[str, Any]], seeds: int) -> None:
    table = Table("", "mean", "± deviation", "lowest", "highest", title=f"{seeds} seeds", box=None)
    for name, figure in figures.items():
        values = figure["values"]
        cells = (figure["mean"], figure["deviation"], min(values), max(values))
        table.add_row(name, *(f"{value:.4f}" for value in cells))
    console.print(table)


def _tell(folder: RunDirectory, result: dict[str, Any]) -> None:
    console = Console(stderr=True, highlight=False)
    if said := Curves.of(*read_metrics(folder.metrics), unlike(read_recipe(folder.recipe))).verdict():
        console.print("\n" + said)
    if best := result["best"]:
        why = "stopped early; " if result["stopped_early"] else ""
        console.print(
            f"\n{why}the best model, of step {best['best_step']:,}, is written ({best['metric']} {best['best']:.4f})"
        )
    test = ""
    if "test_loss" in result:
        test = f"\ntest loss [bold]{result['test_loss']:.4f}[/bold]{describe_metrics(result, split='test')}"
    console.print(
        f"\n{result['steps']:,} steps, {result['epochs']:.2f} epochs in {result['seconds']:.0f} s, "
        f"{result['tokens_per_second_median']:,.0f} tokens/s\n"
        f"held-out loss [bold]{result['eval_loss']:.4f}[/bold]{describe_metrics(result)}{test}"
    )
    for table in figure_tables(result, "test" if "test_loss" in result else "eval"):
        console.print("", table, sep="\n")
    console.print(
        f"\nmodel        {folder.model}   (shoal evaluate {folder.root})\n"
        f"predictions  {folder.predictions}\nreport       {folder.report}"
    )
