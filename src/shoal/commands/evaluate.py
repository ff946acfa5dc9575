"""Held-out loss of a model, and bits per byte or accuracy by its task: on a prepared corpus, or on text files.

    shoal evaluate runs/demo
    shoal evaluate runs/demo --text README.md docs
    shoal evaluate path/to/gpt2 --text notes/
    shoal evaluate runs/sst2 --data dev.tsv
    shoal evaluate runs/demo --harness tasks/

A run is evaluated at its own task, on the held-out text of its own corpora, laid into rows as it was in training; a model by
itself needs --text or --corpus, and continues text if it is a decoder, finds masked tokens if it is an encoder. A model that
was fine-tuned is evaluated at what it was fine-tuned for: on the examples that its run held out, or on --data. On text a
decoder reads windows that overlap (--stride), so that no token is predicted from a few before it alone. With --harness a
decoder does tasks of lm-eval that lie in local files.
"""

import math
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, cast

import tyro
from rich.console import Console
from rich.table import Table

from shoal.core.device import Device, find_device
from shoal.core.errors import InputError
from shoal.core.extras import library
from shoal.core.model_directory import find_model_directory
from shoal.core.recipe import Examples, Recipe
from shoal.core.recipe_file import build_recipe, read_recipe, recipe_tree
from shoal.data.examples.readers import has_known_format, read_examples
from shoal.data.examples.splits import ADVICE, read_splits
from shoal.data.plan import HeldOut, open_corpora, plan_evaluation
from shoal.data.readers import Faults
from shoal.data.rows import StreamRows
from shoal.data.shards import Corpus, TokenStream
from shoal.data.text import tokenize_sources
from shoal.data.tokenizer import difference, read_tokenizer
from shoal.parallel.mesh import Axis
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from shoal.serve.generation import LanguageModel, load_language_model
from shoal.tasks import TASKS, check_task
from shoal.train.evaluation import Evaluator
from shoal.train.figure_tables import SPLITS, figure_tables
from shoal.train.labelled_model import LabelledModel, evaluate_labelled, is_labelled, read_labelled_model
from shoal.train.telemetry import describe_metrics

LARGEST_LOSS = 700.0
"""Whose perplexity is a number."""


@dataclass(frozen=True)
class Arguments:
    """Options of `shoal evaluate`."""

    model: Annotated[Path, tyro.conf.Positional]
    """A run's folder, or a model's."""
    corpus: Path | None = None
    """A prepared corpus, whose held-out split is read; a run's own by default."""
    text: tuple[str, ...] = field(default_factory=tuple)
    """Files and folders to evaluate on instead."""
    stride: int | None = None
    """Tokens from one window of --text to the next: half of the context by default; the context, as in training."""
    task: Literal["causal", "masked", "infill"] | None = None
    """What to evaluate it at; a run's own task by default."""
    data: tuple[str, ...] = field(default_factory=tuple)
    """Labelled examples to evaluate a fine-tuned model on; those that its run held out by default."""
    columns: str = ""
    """Which column of --data is what, as '{text: sentence}', where they have no usual names."""
    predictions: Path | None = None
    """A file for what is predicted of each example, a JSON object a line."""
    judge: str = ""
    """Task `chat`: a command that compares each reply with the data's own, as `chat.judge` in a recipe."""
    against: str = ""
    """Task `chat`: another model's predictions, whose replies are compared in place of the data's."""
    harness: tuple[str, ...] = field(default_factory=tuple)
    """Tasks of lm-eval: folders and YAML files, or names of its own, whose data must be here already."""
    fewshot: int | None = None
    """Examples before each question of --harness; as the task says by default."""
    limit: int | None = None
    """Questions of each task of --harness, at most."""
    batch: int = 32
    """Sequences, or labelled examples, at once."""
    device: Device = "auto"
    """Where to compute; `auto`: on a GPU where there is one."""
    json: bool = False
    """Print one JSON object, and nothing else, on stdout."""
    debug: bool = False
    """Show tracebacks."""


def run(arguments: Arguments, overrides: list[str]) -> dict[str, Any]:
    """Evaluate; returns what the task measures, and what on."""
    if arguments.batch < 1:
        raise InputError(f"--batch is {arguments.batch}; accepted: a whole number above 0")
    if arguments.harness:
        return _evaluate_by_harness(arguments)
    for name in ("fewshot", "limit"):
        if getattr(arguments, name) is not None:
            raise InputError(f"--{name} is of the tasks of --harness, and there are none: leave it out")
    if is_labelled(arguments.model):
        given = {key: value for key in ("judge", "against") if (value := getattr(arguments, key))}
        return _evaluate_labelled(arguments, read_labelled_model(arguments.model, given, find_device(arguments.device)))
    language = load_language_model(arguments.model, find_device(arguments.device))
    if arguments.data:
        raise InputError(f"{arguments.model}: was not fine-tuned, and --data is for labelled examples; give --text")
    recipe = _recipe(arguments, language)
    if arguments.stride is not None and not arguments.text:
        raise InputError("--stride is of windows on a text: give one by --text")
    with TemporaryDirectory(prefix="shoal-") as scratch:
        if arguments.text:
            streams = [tokenize_sources(arguments.text, language.tokenizer, Path(scratch), recipe.data.text_field)]
            source = "text"
            held_out = {"text": _in_stream(streams[0], language, _stride(arguments, recipe.task, language))}
        else:
            corpora = _corpora(arguments, recipe, language)
            streams = [corpus.split("held_out") for corpus in corpora]
            source = ", ".join(str(corpus.directory) for corpus in corpora)
            if arguments.corpus is None:
                framing = TASKS[recipe.task](recipe, language.tokenizer, streams).framing
                held_out = plan_evaluation(recipe, corpora, language.model.config.context, framing)
            else:
                held_out = {corpora[0].directory.name: _in_stream(streams[0], language)}
        evaluated = _evaluate(language, recipe, streams, held_out, arguments.batch)
    size, tokens = (sum(getattr(stream, name) for stream in streams) for name in ("bytes", "tokens"))
    result = {"model": str(arguments.model), "task": recipe.task, "source": source, "bytes": size, "tokens": tokens}
    result |= evaluated
    if recipe.task == "causal":
        result["eval_perplexity"] = math.exp(min(result["eval_loss"], LARGEST_LOSS))
    if not arguments.json:
        Console(highlight=False).print(
            f"{recipe.task}: loss {result['eval_loss']:.4f} nats a target[bold]{describe_metrics(result, digits=4)}[/bold], "
            f"over {size:,} bytes in {tokens:,} tokens of {source}",
            soft_wrap=True,
        )
    return result


def _evaluate_labelled(arguments: Arguments, labelled: LabelledModel) -> dict[str, Any]:
    if arguments.text or arguments.corpus or arguments.task or arguments.stride is not None:
        raise InputError(f"{arguments.model}: was fine-tuned for '{labelled.name}', at which --data evaluates it")
    settings = _example_settings(arguments)
    faults = Faults(settings.on_error == "skip", ADVICE)
    roles = labelled.task.roles
    if arguments.data:
        splits = {"eval": list(read_examples(arguments.data, roles, settings, faults, "validation"))}
    else:
        found = read_splits(settings, roles)
        faults = found.faults
        splits = {"eval": found.validation} | ({"test": found.test} if found.test else {})
    evaluated = evaluate_labelled(labelled, splits, faults, arguments.batch, arguments.predictions)
    count = sum(map(len, splits.values())) - faults.count
    result = {"model": str(arguments.model), "task": labelled.name, "examples": count, "examples_left_out": faults.count}
    result |= evaluated
    if not arguments.json:
        console = Console(highlight=False)
        for name, examples in splits.items():
            console.print(
                f"{labelled.name}: {SPLITS[name]} loss {result[f'{name}_loss']:.4f}"
                f"[bold]{describe_metrics(result, digits=4, split=name)}[/bold], over {len(examples):,} examples",
                soft_wrap=True,
            )
            for table in figure_tables(result, name):
                console.print(table)
    return result


def _example_settings(arguments: Arguments) -> Examples:
    """How the run's own recipe reads examples, but for what is said otherwise."""
    own = find_model_directory(arguments.model).parent / "recipe.yaml"
    if not own.exists() and not arguments.data:
        raise InputError(f"{arguments.model}: not a run's folder; say what to evaluate on by --data")
    settings: Any = read_recipe(own).examples if own.exists() else Examples()
    if arguments.columns:
        columns = read_recipe(None, ["--examples.columns", arguments.columns]).examples.columns
        settings = replace(settings, columns=columns)
    if arguments.data and all(has_known_format(Path(name)) for name in arguments.data):
        settings = replace(settings, format="auto")
    return cast(Examples, settings)


def _evaluate(
    language: LanguageModel, recipe: Recipe, streams: list[TokenStream], held_out: dict[str, HeldOut], batch: int
) -> dict[str, float]:
    check_task(recipe, language.model.config)
    task = TASKS[recipe.task](recipe, language.tokenizer, streams)
    return Evaluator(task, held_out, batch, Wire(World(device=language.model.head_weight.device)), Axis(), nullcontext())(
        language.model
    )


def _in_stream(stream: TokenStream, language: LanguageModel, stride: int | None = None) -> HeldOut:
    return HeldOut(StreamRows(stream, language.model.config.context, partial=True, stride=stride), stream.bytes)


def _stride(arguments: Arguments, task: str, language: LanguageModel) -> int | None:
    """From one window to the next; None where they don't overlap."""
    context, given = language.model.config.context, arguments.stride
    if given is None:
        return max(1, context // 2) if task == "causal" else None
    if task != "causal":
        raise InputError(
            f"--stride is for models that predict a text from what is before; task '{task}' hides a part of it, and its "
            "loss is no perplexity: leave --stride out"
        )
    if not 1 <= given <= context:
        raise InputError(f"--stride is {given}; accepted: 1 to the model's context of {context}")
    return given


def _evaluate_by_harness(arguments: Arguments) -> dict[str, Any]:
    theirs = ("corpus", "text", "task", "data", "stride", "columns", "predictions", "judge", "against")
    given = [name for name in theirs if getattr(arguments, name)]
    if given:
        raise InputError(f"--{given[0]} is not for --harness, whose tasks bring their own questions")
    for name in ("fewshot", "limit"):
        if (value := getattr(arguments, name)) is not None and value < (name == "limit"):
            raise InputError(
                f"--{name} is {value}; accepted: a whole number {'above 0' if name == 'limit' else 'from 0 on'}"
            )
    library("lm_eval", "harness")
    from shoal.serve.harness.tasks import run_tasks

    language = load_language_model(arguments.model, find_device(arguments.device))
    found = run_tasks(language, arguments.harness, arguments.batch, arguments.fewshot, arguments.limit)
    if not arguments.json:
        table = Table("task", "questions", "measure", "value", "±", box=None)
        for task in found:
            for name, value in task.figures.items():
                error = task.errors.get(name)
                table.add_row(
                    task.name, f"{task.questions:,}", name, f"{value:.4f}", "" if error is None else f"{error:.4f}"
                )
        Console(highlight=False).print(table)
    return {"model": str(arguments.model), "harness": {task.name: asdict(task) for task in found}}


def _recipe(arguments: Arguments, language: LanguageModel) -> Recipe:
    """The run's recipe, or, for a model by itself, one of the task that its kind is for."""
    own = find_model_directory(arguments.model).parent / "recipe.yaml"
    task = "causal" if language.model.config.causal else "masked"
    usual = {"task": task, "model": {"init_from": str(arguments.model)}}
    tree = recipe_tree(read_recipe(own)) if own.exists() else usual
    return build_recipe(tree | ({"task": arguments.task} if arguments.task is not None else {}))


def _corpora(arguments: Arguments, recipe: Recipe, language: LanguageModel) -> list[Corpus]:
    """The corpora to evaluate on."""
    if arguments.corpus is not None:
        corpora = [Corpus.open(arguments.corpus)]
    else:
        if not (find_model_directory(arguments.model).parent / "recipe.yaml").exists():
            raise InputError(f"{arguments.model}: not a run's folder; say what to evaluate on by --text or --corpus")
        corpora = open_corpora(recipe)
    for corpus in corpora:
        if corpus.vocabulary > language.model.config.vocabulary:
            raise InputError(
                f"{corpus.directory} was prepared with another tokenizer: its vocabulary is {corpus.vocabulary}, "
                f"the model's {language.model.config.vocabulary}"
            )
        differing = difference(language.tokenizer, read_tokenizer(corpus.tokenizer_path))
        if differing:
            folder = find_model_directory(arguments.model)
            raise InputError(
                f"{corpus.directory} was prepared with another tokenizer than the model's: {differing}; evaluate on text "
                f"files instead (--text), or on a corpus prepared with --tokenizer.path {folder}"
            )
    return corpora
