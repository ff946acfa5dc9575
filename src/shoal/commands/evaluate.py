"""Held-out loss and bits per byte of a model: on a prepared corpus, or on text files.

    shoal evaluate runs/demo
    shoal evaluate runs/demo --text README.md docs
    shoal evaluate path/to/gpt2 --corpus data/gpt-demo

A run is evaluated on the held-out text of its own corpora, laid into rows as it was in training; a model by itself needs
--text or --corpus.
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
from shoal.data.plan import HeldOut, open_corpora, plan_evaluation
from shoal.data.rows import StreamRows
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
            streams, source = [tokenize_sources(arguments.text, language.tokenizer, Path(scratch))], "text"
            held_out = {"text": _in_stream(streams[0], language)}
        else:
            corpora, held_out = _held_out(arguments, language)
            streams = [corpus.split("held_out") for corpus in corpora]
            source = ", ".join(str(corpus.directory) for corpus in corpora)
        evaluated = _evaluate(language, held_out, arguments.batch)
    size, tokens = (sum(getattr(stream, name) for stream in streams) for name in ("bytes", "tokens"))
    result = {"model": str(arguments.model), "source": source, "bytes": size, "tokens": tokens, **evaluated}
    if not arguments.json:
        Console(highlight=False).print(
            f"loss {result['eval_loss']:.4f} nats a token, [bold]{result['eval_bpb']:.4f} bits per byte[/bold], "
            f"over {size:,} bytes in {tokens:,} tokens of {source}"
        )
    return result


def _evaluate(language: LanguageModel, held_out: dict[str, HeldOut], batch: int) -> dict[str, float]:
    return Evaluator(Causal(), held_out, batch, Wire(World()), Axis(), nullcontext())(language.model)


def _in_stream(stream: TokenStream, language: LanguageModel) -> HeldOut:
    return HeldOut(StreamRows(stream, language.model.config.context, partial=True), stream.bytes)


def _held_out(arguments: Arguments, language: LanguageModel) -> tuple[list[Corpus], dict[str, HeldOut]]:
    """The corpora to evaluate on, and the rows of their held-out text."""
    if arguments.corpus is not None:
        corpora = [Corpus.open(arguments.corpus)]
    else:
        file = find_model_directory(arguments.model).parent / "recipe.yaml"
        if not file.exists():
            raise InputError(f"{arguments.model}: not a run's folder; say what to evaluate on by --text or --corpus")
        recipe = read_recipe(file)
        corpora = open_corpora(recipe)
    for corpus in corpora:
        if corpus.vocabulary > language.model.config.vocabulary:
            raise InputError(
                f"{corpus.directory} was prepared with another tokenizer: its vocabulary is {corpus.vocabulary}, "
                f"the model's {language.model.config.vocabulary}"
            )
        differing = difference(language.tokenizer, read_tokenizer(corpus.tokenizer_path))
        if differing:
            raise InputError(
                f"{corpus.directory} was prepared with another tokenizer than the model's: {differing}; evaluate on text "
                f"files instead (--text), or on a corpus prepared with --tokenizer.path {arguments.model}"
            )
    if arguments.corpus is not None:
        return corpora, {corpora[0].directory.name: _in_stream(corpora[0].split("held_out"), language)}
    return corpora, plan_evaluation(recipe, corpora, language.model.config.context, Causal().framing)
