"""Train a language model on a prepared corpus, over any number of ranks.

    shoal prepare recipes/gpt-shakespeare.yaml --data.sources tinyshakespeare.txt
    shoal pretrain recipes/gpt-shakespeare.yaml --workers 2
    shoal pretrain gpt2-small --dry-run --world 64 --shard zero3 --tensor 2
    shoal pretrain recipes/gpt-shakespeare.yaml --workers 1:4 --checkpoint.every 100

The run's folder, runs/NAME, holds the model in the Hugging Face layout, metrics, checkpoints and report.html. Ctrl-C saves
and leaves; --resume goes on. Under torchrun, Slurm or any launcher that sets RANK and WORLD_SIZE, every process joins.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml
from rich.console import Console
from rich.text import Text

from shoal.core.errors import InputError
from shoal.core.files import write_json
from shoal.core.machine import command_started
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import read_recipe, recipe_tree
from shoal.core.run_directory import RunDirectory
from shoal.data.batch_sizes import sequences_at_once
from shoal.data.plan import Plan, open_corpora
from shoal.data.tokenizer import read_tokenizer
from shoal.serve.generation import load_language_model
from shoal.serve.samples import check_prompts, make_samples
from shoal.serve.sampling import Sampling
from shoal.tasks import check_objective
from shoal.train.cluster import check_cluster, train_on_servers
from shoal.train.exact import resolve
from shoal.train.layout import find_layout, rows
from shoal.train.material import build_task, plan_rows
from shoal.train.model_directory import infill_layout
from shoal.train.report import write_report
from shoal.train.run import Session, run_training
from shoal.train.sizes import estimate, transformer_config
from shoal.train.start import Start, StartOptions, run_on_ranks
from shoal.train.telemetry import describe_metrics


@dataclass(frozen=True)
class Arguments(StartOptions):
    """Options of `shoal pretrain`."""

    recipe: Annotated[Path | None, tyro.conf.Positional] = None
    """A recipe file; keys that it doesn't give keep their defaults."""
    dry_run: bool = False
    """Print the resolved recipe and what it takes, and start nothing."""
    world: int = 0
    """With --dry-run: as if on so many ranks, on any machines."""


def run(arguments: Arguments, overrides: list[str]) -> dict[str, Any] | None:
    """Train; returns the run's result, None on ranks that don't speak."""
    command_started()
    start = Start.of("pretrain", arguments)
    workers = start.workers
    recipe = read_recipe(arguments.recipe, overrides)
    check_objective(recipe)
    workers.check(recipe)
    check_cluster(recipe, workers.most, workers.elastic)
    if arguments.world < 0 or (arguments.world and not arguments.dry_run):
        raise InputError(f"--world is {arguments.world}; accepted: a whole number above 0, and only beside --dry-run")
    if arguments.dry_run:
        return _dry_run(recipe, arguments, workers.most)

    def check() -> None:
        plan, vocabulary = _plan(recipe)
        estimate(recipe, vocabulary, workers.most, plan.tokens_per_row)

    result = run_on_ranks(
        start,
        recipe,
        check,
        train=lambda folder, resume: run_training(recipe, Session(folder, resume, arguments.quiet)),
        serve=lambda folder, resume: train_on_servers(recipe, Session(folder, resume, arguments.quiet), workers.most),
    )
    if result is None:
        return None
    folder = RunDirectory(arguments.runs / recipe.name)
    samples = _samples(recipe, folder)
    result = result | {"samples": samples}
    write_json(folder.result, result)
    write_report(folder, samples)
    if not arguments.json:
        _tell(folder, result, samples)
    return result


def _samples(recipe: Recipe, folder: RunDirectory) -> list[dict[str, str]]:
    if not recipe.samples.prompts:
        return []
    language = load_language_model(folder.model)
    settings = recipe.samples
    layout = infill_layout(recipe) if recipe.task == "infill" else None
    return make_samples(language, settings.prompts, settings.tokens, Sampling(settings.temperature), recipe.seed, layout)


def _tell(folder: RunDirectory, result: dict[str, Any], samples: list[dict[str, str]]) -> None:
    console = Console(stderr=True, highlight=False)
    for sample in samples:
        console.print(Text.assemble("\n", (sample["prompt"], "bold"), sample["text"], (sample.get("after", ""), "bold")))
    if best := result["best"]:
        why = "stopped early; " if result["stopped_early"] else ""
        console.print(
            f"\n{why}the best model, of step {best['best_step']:,}, is written ({best['metric']} {best['best']:.4f})"
        )
    console.print(
        f"\n{result['tokens']:,} tokens in {result['seconds']:.0f} s, {result['tokens_per_second_median']:,.0f} tokens/s, "
        f"MFU {result['mfu_median']:.0%} of a matrix peak of {result['matrix_peak_flops'] / 1e9:,.0f} GFLOP/s\n"
        f"held-out loss [bold]{result['eval_loss']:.4f}[/bold]{describe_metrics(result)}\n"
        f"model   {folder.model}   (shoal generate {folder.root} --prompt …)\nreport  {folder.report}"
    )


def _plan(recipe: Recipe) -> tuple[Plan, int]:
    """(what the recipe's run reads, the corpora's vocabulary)."""
    corpora, samples = open_corpora(recipe), recipe.samples
    vocabulary, tokenizer = corpora[0].vocabulary, read_tokenizer(corpora[0].tokenizer_path)
    context = transformer_config(recipe, vocabulary).context
    plan = plan_rows(recipe, corpora, build_task(recipe, corpora), context)
    check_prompts(recipe.task, samples.prompts, samples.tokens, tokenizer, context)
    return plan, vocabulary


def _dry_run(recipe: Recipe, arguments: Arguments, workers: int) -> dict[str, Any]:
    directories = [Path(directory) for directory in recipe.corpus_directories]
    prepared = all((directory / "manifest.json").exists() for directory in directories)
    plan, vocabulary = _plan(recipe) if prepared else (None, recipe.tokenizer.vocabulary)
    world = arguments.world or max(workers, int(os.environ.get("WORLD_SIZE", "1")))
    facts = estimate(recipe, vocabulary, world, plan.tokens_per_row if plan else None)
    layout = find_layout(recipe, transformer_config(recipe, vocabulary), world)
    facts["layout"] = asdict(layout)
    facts["corpus_tokens"] = sum(corpus.split("train").tokens for corpus in open_corpora(recipe)) if prepared else None
    facts["rows"] = _rows(recipe, plan, world // recipe.parallel.tensor, facts["steps"]) if plan else None
    if not arguments.json:
        console = Console(highlight=False)
        console.print(yaml.safe_dump(recipe_tree(recipe), sort_keys=False, allow_unicode=True), markup=False)
        console.print(f"parameters       {facts['parameters']:,}")
        console.print(f"tokens           {_number(facts['tokens'])} ({facts['tokens_per_step']:,} a step)")
        console.print(f"steps            {_number(facts['steps'])}")
        console.print(f"memory           about {facts['memory_bytes'] / 1e9:.2f} GB a rank, on {world} rank(s)")
        for name, text in rows(layout, world):
            console.print(f"{name:<16} {text}")
        assumed = f"not prepared yet (a vocabulary of {recipe.tokenizer.vocabulary:,} assumed)"
        have = f"{facts['corpus_tokens']:,} training tokens" if prepared else assumed
        console.print(f"corpus           {', '.join(map(str, directories))}: {have}")
        if facts["rows"]:
            console.print(f"rows             {_told(facts['rows'])}")
    return {"recipe": recipe_tree(recipe), **facts}


def _rows(recipe: Recipe, plan: Plan, ranks: int, steps: int | None) -> dict[str, Any]:
    """The run's rows: their kind and number, what share of their positions is real, and how often each corpus is read."""
    recipe = resolve(recipe, ranks)
    read = plan.order.read_before(plan.sizes.position_after(steps)) if steps is not None else []
    together = sequences_at_once(recipe, ranks)
    return {
        "kind": recipe.data.rows,
        "samples": plan.rows.samples,
        "real_share": plan.real_share(recipe.train.global_batch, together, ranks, recipe.data.partition),
        "tokens_per_row": plan.tokens_per_row,
        "epochs": {part.name: count / part.samples for part, count in zip(plan.order.parts, read, strict=False)},
    }


def _told(rows: dict[str, Any]) -> str:
    text = f"{rows['samples']:,} {rows['kind']}, {rows['real_share']:.2%} of positions real"
    epochs = ", ".join(f"{count:.2f} epochs{f' of {name}' if name else ''}" for name, count in rows["epochs"].items())
    return f"{text}; {epochs}" if epochs else text


def _number(value: int | None) -> str:
    return f"{value:,}" if value is not None else "as many as the minutes allow"
