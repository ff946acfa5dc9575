"""Held-out loss and bits per byte of a model: on a prepared corpus, or on text files.

    shoal evaluate runs/demo
    shoal evaluate runs/demo --text README.md docs
    shoal evaluate path/to/gpt2 --corpus data/gpt-demo

A run is evaluated on the held-out split of its own corpus; a model by itself needs --text or --corpus.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import tyro
from rich.console import Console

from shoal.core.errors import InputError
from shoal.core.model_directory import find_model_directory
from shoal.core.recipe_file import read_recipe
from shoal.data.shards import Corpus, TokenStream
from shoal.data.text import tokenize_sources
from shoal.data.tokenizer import difference, read_tokenizer
from shoal.parallel.mesh import Axis
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from shoal.serve.generation import LanguageModel, load_language_model
from shoal.tasks import Causal
from shoal.train.evaluation import Evaluator


@dataclass(frozen=True)
class Arguments:
    """Options of `shoal evaluate`."""

    model: Annotated[Path, tyro.conf.Positional]
    """A run's folder, or a model's."""
    corpus: Path | None = None
    """A prepared corpus, whose held-out split is read; a run's own by default."""
    text: tuple[str, ...] = field(default_factory=tuple)
    """Files and folders to evaluate on instead."""
    batch: int = 8
    """Sequences at once."""
    json: bool = False
    """Print one JSON object, and nothing else, on stdout."""
    debug: bool = False
    """Show tracebacks."""


def run(arguments: Arguments, overrides: list[str]) -> dict[str, Any]:
    """Evaluate; returns loss, bits per byte and what they were measured on."""
    if arguments.batch < 1:
        raise InputError(f"--batch is {arguments.batch}; accepted: a whole number above 0")
    language = load_language_model(arguments.model)
    with TemporaryDirectory(prefix="shoal-") as scratch:
        if arguments.text:
            stream, source = tokenize_sources(arguments.text, language.tokenizer, Path(scratch)), "text"
        else:
            corpus = _corpus(arguments, language)
            stream, source = corpus.split("held_out"), str(corpus.directory)
        evaluated = _evaluate(language, stream, arguments.batch)
    result = {"model": str(arguments.model), "source": source, "bytes": stream.bytes, "tokens": stream.tokens, **evaluated}
    if not arguments.json:
        Console(highlight=False).print(
            f"loss {result['eval_loss']:.4f} nats a token, [bold]{result['eval_bpb']:.4f} bits per byte[/bold], "
            f"over {stream.bytes:,} bytes in {stream.tokens:,} tokens of {source}"
        )
    return result


def _evaluate(language: LanguageModel, stream: TokenStream, batch: int) -> dict[str, float]:
    context = language.model.config.context
    evaluator = Evaluator(Causal(), stream, context, batch, Wire(World()), Axis(), nullcontext())
    return evaluator(language.model)


def _corpus(arguments: Arguments, language: LanguageModel) -> Corpus:
    if arguments.corpus is not None:
        corpus = Corpus.open(arguments.corpus)
    else:
        recipe = find_model_directory(arguments.model).parent / "recipe.yaml"
        if not recipe.exists():
            raise InputError(f"{arguments.model}: not a run's folder; say what to evaluate on by --text or --corpus")
        corpus = Corpus.open(Path(read_recipe(recipe).corpus_directory))
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
