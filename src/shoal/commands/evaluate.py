"""Held-out loss of a model, and bits per byte or accuracy by its task: on a prepared corpus, or on text files.

    shoal evaluate runs/demo
    shoal evaluate runs/demo --text README.md docs
    shoal evaluate path/to/gpt2 --corpus data/gpt-demo

A run is evaluated at its own task, on the held-out split of its own corpus; a model by itself needs --text or --corpus, and
continues text if it is a decoder, finds masked tokens if it is an encoder.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from shoal.core.errors import InputError
from shoal.core.model_directory import find_model_directory
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import build_recipe, read_recipe, recipe_tree
from shoal.data.shards import Corpus, TokenStream
from shoal.data.text import tokenize_sources
from shoal.data.tokenizer import difference, read_tokenizer
from shoal.parallel.mesh import Axis
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from shoal.serve.generation import LanguageModel, load_language_model
from shoal.tasks import TASKS, check_task
from shoal.train.evaluation import Evaluator
from shoal.train.telemetry import describe_metrics


@dataclass(frozen=True)
class Arguments:
    """Options of `shoal evaluate`."""

    model: Annotated[Path, tyro.conf.Positional]
    """A run's folder, or a model's."""
    corpus: Path | None = None
    """A prepared corpus, whose held-out split is read; a run's own by default."""
    text: tuple[str, ...] = field(default_factory=tuple)
    """Files and folders to evaluate on instead."""
    task: Literal["causal", "masked", "infill"] | None = None
    """What to evaluate it at; a run's own task by default."""
    batch: int = 8
    """Sequences at once."""
    json: bool = False
    """Print one JSON object, and nothing else, on stdout."""
    debug: bool = False
    """Show tracebacks."""


def run(arguments: Arguments, overrides: list[str]) -> dict[str, Any]:
    """Evaluate; returns what the task measures, and what on."""
    if arguments.batch < 1:
        raise InputError(f"--batch is {arguments.batch}; accepted: a whole number above 0")
    language = load_language_model(arguments.model)
    recipe = _recipe(arguments, language)
    with TemporaryDirectory(prefix="shoal-") as scratch:
        if arguments.text:
            stream, source = tokenize_sources(arguments.text, language.tokenizer, Path(scratch)), "text"
        else:
            corpus = _corpus(arguments, recipe, language)
            stream, source = corpus.split("held_out"), str(corpus.directory)
        evaluated = _evaluate(language, recipe, stream, arguments.batch)
    result = {"model": str(arguments.model), "task": recipe.task, "source": source, "bytes": stream.bytes}
    result |= {"tokens": stream.tokens, **evaluated}
    if not arguments.json:
        Console(highlight=False).print(
            f"{recipe.task}: loss {result['eval_loss']:.4f} nats a target[bold]{describe_metrics(result)}[/bold], "
            f"over {stream.bytes:,} bytes in {stream.tokens:,} tokens of {source}"
        )
    return result


def _evaluate(language: LanguageModel, recipe: Recipe, stream: TokenStream, batch: int) -> dict[str, float]:
    config = language.model.config
    check_task(recipe, config)
    task = TASKS[recipe.task](recipe, language.tokenizer, stream)
    evaluator = Evaluator(task, stream, config.context, batch, Wire(World()), Axis(), nullcontext())
    return evaluator(language.model)


def _recipe(arguments: Arguments, language: LanguageModel) -> Recipe:
    """The run's recipe, or, for a model by itself, one of the task that its kind is for."""
    own = find_model_directory(arguments.model).parent / "recipe.yaml"
    tree = (
        recipe_tree(read_recipe(own)) if own.exists() else {"task": "causal" if language.model.config.causal else "masked"}
    )
    return build_recipe(tree | ({"task": arguments.task} if arguments.task is not None else {}))


def _corpus(arguments: Arguments, recipe: Recipe, language: LanguageModel) -> Corpus:
    if arguments.corpus is not None:
        corpus = Corpus.open(arguments.corpus)
    else:
        if not (find_model_directory(arguments.model).parent / "recipe.yaml").exists():
            raise InputError(f"{arguments.model}: not a run's folder; say what to evaluate on by --text or --corpus")
        corpus = Corpus.open(Path(recipe.corpus_directory))
    if corpus.vocabulary > language.model.config.vocabulary:
        raise InputError(
            f"{corpus.directory} was prepared with another tokenizer: its vocabulary is {corpus.vocabulary}, "
            f"the model's {language.model.config.vocabulary}"
        )
    differing = difference(language.tokenizer, read_tokenizer(corpus.tokenizer_path))
    if differing:
        raise InputError(
            f"{corpus.directory} was prepared with another tokenizer than the model's: {differing}; "
            "evaluate on text files instead (--text), or on a corpus prepared with --tokenizer.path " + str(arguments.model)
        )
    return corpus
