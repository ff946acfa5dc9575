"""What a recipe will take on this machine, before it is run: memory, time, disk, network, and whether it fits.

    shoal plan gpt-shakespeare
    shoal plan gpt-demo --workers 2 --json
    shoal plan gpt-demo --workers 2 --machines 4 --parallel.link.megabits 100
    shoal plan gpt-shakespeare --find-lr --picture rates.png
    shoal plan --task classify --data train.tsv

The recipe is rehearsed: a short run with as many ranks as there will be, in a folder that is thrown away. It takes about as
long as the run needs to start, and some seconds. With --machines, other machines are taken to be like this one, each with a
link as the recipe gives it (1 Gbit/s where it gives none). --find-lr trains some steps at growing learning rates instead,
and says which to take.

With a task of `shoal finetune`, the examples are looked at (language, length, labels, number) and the machine is
measured: it says which kind of model to take, and how much of it to train, with time and memory, and why.
"""

import os
import shlex
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from shoal.core.errors import InputError
from shoal.core.files import read_json, write_json
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import read_recipe, write_recipe
from shoal.data.batch_sizes import BatchSizes, sequences_at_once
from shoal.data.plan import open_corpora, plan_evaluation
from shoal.models.transformer import Transformer
from shoal.parallel.launch import ERROR_FOLDER, launch
from shoal.parallel.world import is_rank, join
from shoal.plan import advice, table
from shoal.plan.forecast import Forecast, Shape, foretell, numbers
from shoal.plan.network import Group, find_meeting, link_of
from shoal.plan.picture import draw
from shoal.plan.rehearsal import Extent, passes, rehearse
from shoal.plan.resources import device_of, free_memory
from shoal.plan.tuning import choose, tell
from shoal.train.adversary import passes_of
from shoal.train.choice import Last
from shoal.train.exact import resolve
from shoal.train.finder import Curve, find_rate, lines, suggest
from shoal.train.finetune import finetuning_defaults
from shoal.train.layout import find_layout
from shoal.train.material import build_task, plan_rows
from shoal.train.setup import matrix_peak
from shoal.train.sizes import estimate, transformer_config

USUAL_MEGABITS, USUAL_LATENCY = 1000.0, 0.0002
"""Of a link between machines that nobody describes: Ethernet in one room."""

USUAL_SHARE = 0.5
"""Of the matrix peak, to guess how many steps a rehearsal has time for."""


SHORT = {"--model": "--model.init_from", "--data": "--examples.train"}
"""Recipe keys that go without their section here."""


@dataclass(frozen=True)
class Arguments:
    """Options of `shoal plan`."""

    recipe: Annotated[Path | None, tyro.conf.Positional] = None
    """A recipe file; keys that it doesn't give keep their defaults."""
    workers: int = 1
    """Ranks on this machine, and on each other one."""
    machines: int = 1
    """Machines like this one."""
    find_lr: bool = False
    """Find a learning rate, by training at growing ones."""
    find_lr_steps: int = 120
    """Steps of that, from a thousandth of the recipe's rate to at most a thousand times it."""
    picture: Path | None = None
    """--find-lr: draw loss against learning rate here (PNG)."""
    output: Path | None = None
    """Write the JSON object to this file too."""
    runs: Path = Path("runs")
    """Folder of all runs, whose disk must have room."""
    quiet: bool = False
    """Show no progress."""
    json: bool = False
    """Print one JSON object, and nothing else, on stdout."""
    debug: bool = False
    """Show tracebacks."""


def run(arguments: Arguments, overrides: list[str]) -> dict[str, Any] | None:
    """Foretell, show, and return the numbers; None on ranks that this has started."""
    for name, count in (("workers", arguments.workers), ("machines", arguments.machines)):
        if count < 1:
            raise InputError(f"--{name} is {count}; accepted: a whole number above 0")
    recipe = read_recipe(arguments.recipe, overrides)
    if recipe.verb == "finetune":
        recipe = read_recipe(arguments.recipe, overrides, finetuning_defaults)
        choice = choose(recipe)
        if not arguments.json:
            tell(choice, Console(highlight=False))
        if arguments.output is not None:
            write_json(arguments.output, choice.numbers())
        return choice.numbers()
    if recipe.parallel.sync == "server":
        raise InputError("'parallel.sync' is server: parameter servers can't be rehearsed; plan with parallel.sync every")
    if is_rank() and ERROR_FOLDER not in os.environ:
        raise InputError("shoal plan starts its ranks itself (--workers N): run it alone, without torchrun or srun")
    if arguments.find_lr:
        if arguments.machines > 1:
            raise InputError(
                "--machines makes no difference to --find-lr: which rate training takes depends on train.global_batch, "
                "whichever machines share it; leave it out"
            )
        return _find_rate(recipe, arguments)
    if arguments.picture is not None:
        raise InputError("--picture draws what --find-lr has found: give both")
    found = _plan(recipe, arguments, overrides)
    if arguments.output is not None:
        write_json(arguments.output, found)
    return found


def _plan(recipe: Recipe, arguments: Arguments, overrides: list[str]) -> dict[str, Any]:
    text, ranks = Text.of(recipe), arguments.workers * arguments.machines
    facts = estimate(recipe, text.vocabulary, ranks, text.tokens_per_row)
    _check_machines(recipe, arguments)
    shape = _shape(recipe, text, facts, ranks)
    memory, free = _memory_of(text, ranks), free_memory(recipe, arguments.workers)
    each = free // arguments.workers
    planned, keys, typed = recipe, dict[str, Any](), _typed(arguments, overrides)
    suggestions = advice.advise(recipe, memory, shape.at_once, shape.data_ranks, each)
    if facts["memory_bytes"] > each:
        # what would bring the machine to its knees is not tried; the mildest change that fits is
        harmless = [one for one in suggestions if one.fits and "model.preset" not in one.keys]
        if not harmless:
            return _tell(Plan(recipe, facts, None, free, suggestions, keys, typed), arguments)
        planned, keys = harmless[0].apply(recipe), harmless[0].keys
        shape = _shape(planned, text, facts, ranks)
    forecast = _rehearsed(planned, text, shape, arguments)
    if not keys:  # what was measured says how far the formula is off
        off = forecast.memory - facts["memory_bytes"]
        suggestions = advice.advise(
            recipe, lambda other: memory(other) + off, shape.at_once, shape.data_ranks, each
        )  # fmt: skip
    return _tell(Plan(recipe, facts, forecast, free, suggestions, keys, typed), arguments)


@dataclass(frozen=True)
class Text:
    """What a recipe's run reads, as far as a plan needs it: rows of so many real tokens on average, the sizes of steps,
    held-out rows of each corpus, bytes of the token files, and the share of tokens that the task projects.
    """

    vocabulary: int
    tokens_per_row: float
    sizes: BatchSizes
    held_out: tuple[int, ...]
    bytes: int
    projected: float

    @classmethod
    def of(cls, recipe: Recipe) -> "Text":
        """The recipe's corpora, laid out as its run would; raises what that would."""
        corpora = open_corpora(recipe)
        task, vocabulary = build_task(recipe, corpora), corpora[0].vocabulary
        context = transformer_config(recipe, vocabulary).context
        plan = plan_rows(recipe, corpora, task, context)
        held_out = plan_evaluation(recipe, corpora, context, task.framing).values()
        shards = [shard for corpus in corpora for shard in corpus.split("train").shards]
        return cls(
            vocabulary, plan.tokens_per_row, plan.sizes, tuple(one.rows.samples for one in held_out),
            sum(shard.path.stat().st_size for shard in shards), task.projected,
        )  # fmt: skip


def _check_machines(recipe: Recipe, arguments: Arguments) -> None:
    """`InputError` where ranks of several machines hold one copy of the model, which those of one could not rehearse."""
    together = max(1, recipe.parallel.shard_ranks) * recipe.parallel.tensor
    if arguments.machines > 1 and arguments.workers % together:
        raise InputError(
            f"--workers is {arguments.workers}, and {together} ranks divide a copy of the model (parallel.shard_ranks × "
            f"parallel.tensor): a rehearsal needs them on one machine; give a multiple of {together}"
        )


def _rehearsed(recipe: Recipe, text: Text, shape: Shape, arguments: Arguments) -> Forecast:
    workers, machines, ranks = arguments.workers, arguments.machines, arguments.workers * arguments.machines
    link = recipe.parallel.link
    wire = link_of(
        recipe, workers, machines, link.megabits or USUAL_MEGABITS, link.latency or USUAL_LATENCY
    )  # fmt: skip
    config = transformer_config(recipe, text.vocabulary)
    here, widest = workers // recipe.parallel.tensor, shape.sizes.largest
    device = device_of(recipe, workers)
    peak = matrix_peak(device, recipe.train.precision)
    guess = shape.flops * shape.tokens_per_row * shape.at_once * here / (USUAL_SHARE * peak)
    most = passes(widest, shape.data_ranks, shape.at_once)
    extent = Extent(here, shape.at_once, most, shape.held_out, guess)
    console = Console(stderr=True, quiet=arguments.quiet)
    with console.status(f"rehearsing on {workers} rank{'s' * (workers > 1)} …"):
        # ranks of one machine share memory, which those of several can't
        apart = machines > 1 and recipe.parallel.sync == "auto"
        rehearsal = rehearse(advice.changed(recipe, {"parallel.sync": "every"}) if apart else recipe, workers, extent)
    if machines > 1:
        alike = advice.changed(recipe, {"train.micro_batch": shape.at_once})
        elsewhere, seen = (estimate(alike, text.vocabulary, count)["memory_bytes"] for count in (ranks, workers))
        rehearsal = replace(
            rehearsal, peak_flops=rehearsal.peak_flops * machines, memory=rehearsal.memory + elsewhere - seen
        )  # fmt: skip
    sent = sum(find_layout(recipe, config, ranks).sent.values())
    last = Last.of_model(recipe, Transformer(config), ranks)
    group = Group(workers, machines, wire, sent, shape.parameters, last)
    meeting = find_meeting(recipe, group, rehearsal, widest, shape.data_ranks, shape.at_once)
    return foretell(recipe, shape, rehearsal, meeting)


def _shape(recipe: Recipe, text: Text, facts: dict[str, Any], ranks: int) -> Shape:
    recipe = resolve(recipe, ranks)
    config = transformer_config(recipe, text.vocabulary)
    data_ranks = ranks // recipe.parallel.tensor
    return Shape(
        text.sizes,
        facts["steps"],
        text.tokens_per_row,
        data_ranks,
        sequences_at_once(recipe, data_ranks),
        text.held_out,
        text.bytes,
        passes_of(recipe) * Transformer(config).flops_per_token(config.context, text.projected),
        facts["parameters"],
    )


def _memory_of(text: Text, ranks: int) -> advice.Memory:
    return lambda recipe: int(estimate(recipe, text.vocabulary, ranks)["memory_bytes"])


@dataclass(frozen=True)
class Plan:
    """What was found; with `keys`, the forecast is of the recipe with these, as it would not fit without.

    `typed`: what the run is started with, None where no one command does.
    """

    recipe: Recipe
    facts: dict[str, Any]
    forecast: Forecast | None
    free: int
    suggestions: list[advice.Suggestion]
    keys: dict[str, Any]
    typed: str | None

    @property
    def memory(self) -> int:
        """Of a rank, by the rehearsal where the recipe itself was rehearsed."""
        return self.facts["memory_bytes"] if self.forecast is None or self.keys else self.forecast.memory


def _tell(plan: Plan, arguments: Arguments) -> dict[str, Any]:
    """Show it, and return it as numbers."""
    needed = plan.memory * arguments.workers
    fits = needed <= plan.free
    shown = [] if fits else plan.suggestions
    folder = next(path for path in (arguments.runs.resolve(), *arguments.runs.resolve().parents) if path.exists())
    room = shutil.disk_usage(folder).free
    if not arguments.json:
        _show(plan, arguments, needed, shown)
        if plan.forecast and plan.forecast.disk_peak > room:
            _print(
                f"The disk of {folder} has {table.size(room)} free, and {table.size(plan.forecast.disk_peak)} are needed. "
                "Lower checkpoint.keep, or choose another --runs."
            )
    return {
        "recipe": plan.recipe.name,
        "parameters": plan.facts["parameters"],
        "world_size": arguments.workers * arguments.machines,
        "machines": arguments.machines,
        "fits": fits,
        "memory_bytes": plan.memory,
        "memory_of_machine_bytes": needed,
        "memory_free_bytes": plan.free,
        "memory_by_formula_bytes": plan.facts["memory_bytes"],
        "disk_free_bytes": room,
        "with": plan.keys,
        "forecast": numbers(plan.forecast) if plan.forecast else None,
        "suggestions": [asdict(one) for one in shown],
    }


def _show(plan: Plan, arguments: Arguments, needed: int, shown: list[advice.Suggestion]) -> None:
    forecast, ranks = plan.forecast, arguments.workers * arguments.machines
    if forecast is not None:
        parameters = plan.facts["parameters"]
        for name, text in table.rows(forecast, parameters, ranks, arguments.machines, plan.free):
            _print(f"{name:<11} {text}")
        if plan.keys:
            changed = " ".join(f"--{key} {value}" for key, value in plan.keys.items())
            _print(f"(all of this with {changed}, as it does not fit without)")
        for reason in forecast.meeting.reasons:
            _print(reason)
    total = forecast.total if forecast else None
    _print("\n" + table.sentences(plan.typed, total, needed, plan.free, plan.suggestions))
    for one in shown:
        _print(f"  {'fits' if one.fits else 'too large still'}: {table.words(one)}")


def _print(text: str) -> None:
    Console(highlight=False).print(text, markup=False, soft_wrap=True)


def _typed(arguments: Arguments, overrides: list[str]) -> str | None:
    """The recipe, what is changed in it, and the ranks, as `shoal pretrain` takes them; None on several machines."""
    if arguments.machines > 1:
        return None
    recipe = [str(arguments.recipe)] if arguments.recipe else []
    workers = ["--workers", str(arguments.workers)] if arguments.workers > 1 else []
    runs = ["--runs", str(arguments.runs)] if arguments.runs != Path("runs") else []
    return shlex.join([*recipe, *overrides, *workers, *runs])


def _find_rate(recipe: Recipe, arguments: Arguments) -> dict[str, Any] | None:
    estimate(recipe, open_corpora(recipe)[0].vocabulary, arguments.workers)
    if arguments.workers > 1 and not is_rank():
        curve = _launched(recipe, arguments)
    else:
        with join(recipe.train.device, recipe.parallel.threads, recipe.parallel.timeout) as world:
            curve = find_rate(recipe, world, arguments.find_lr_steps, arguments.quiet or arguments.json)
        if not world.is_main:
            return None
        if is_rank():
            assert arguments.output is not None
            write_json(arguments.output, asdict(curve))
            return None
    found = suggest(curve)
    keys = lines(recipe, found.share)
    rate = recipe.optimizer.learning_rate
    if arguments.picture is not None:
        draw(curve, found, rate, arguments.picture)
    result = {
        "suggested": keys,
        "steepest": rate * found.steepest,
        "lowest": rate * found.lowest,
        "diverged": rate * found.diverged if found.diverged is not None else None,
        "learning_rates": [rate * share for share in curve.shares],
        "losses": curve.losses,
        "smoothed": curve.smoothed,
    }
    if not arguments.json:
        console = Console(highlight=False)
        end = f"diverged at {result['diverged']:.2g}" if found.diverged is not None else "never diverged"
        console.print(
            f"the loss fell fastest at {result['steepest']:.2g}, was least at {result['lowest']:.2g}, {end} "
            f"(optimizer.learning_rate; the recipe has {rate:.2g})"
        )
        console.print("put into the recipe: " + ", ".join(f"{key}: {value:g}" for key, value in keys.items()))
        console.print("or type: " + " ".join(f"--{key} {value:g}" for key, value in keys.items()))
    if arguments.output is not None:
        write_json(arguments.output, result)
    return result


def _launched(recipe: Recipe, arguments: Arguments) -> Curve:
    """What ranks of this machine found together."""
    with tempfile.TemporaryDirectory(prefix="shoal-plan-") as name:
        handed_over, left = Path(name) / "recipe.yaml", Path(name) / "curve.json"
        write_recipe(handed_over, recipe)
        words = ["plan", str(handed_over), "--find-lr", "--find-lr-steps", str(arguments.find_lr_steps)]
        quiet = ["--quiet"] if arguments.quiet or arguments.json else []
        launch(arguments.workers, [*words, "--output", str(left), *quiet])
        return Curve(**read_json(left))
