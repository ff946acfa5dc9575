"""A model and its tokenizer, and the text they continue, piece by piece."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from shoal.core.device import moved
from shoal.core.errors import InputError, ShoalError
from shoal.core.files import read_json
from shoal.core.model_directory import adapter_of, find_model_directory, read_adapter_directory, read_model_directory
from shoal.core.native.decode import Format
from shoal.data.tokenizer import TextTokenizer, read_tokenizer
from shoal.models import hugging_face
from shoal.models.hugging_face.adapters import Adapter, merged
from shoal.models.transformer import Transformer
from shoal.serve.request import Constraint, Piece, Request
from shoal.serve.runner import make_runner
from shoal.serve.sampling import Sampling
from shoal.serve.scheduler import Scheduler


@dataclass(frozen=True)
class LanguageModel:
    """What generating needs; `stops`: tokens that end a text, beside the tokenizer's end-of-text token."""

    model: Transformer
    tokenizer: TextTokenizer
    stops: frozenset[int] = frozenset()

    @property
    def ends(self) -> frozenset[int]:
        """All tokens that end a text."""
        return self.stops | {self.tokenizer.end_of_text}


def load_language_model(directory: Path, device: str | torch.device = "cpu") -> LanguageModel:
    """Read a folder in the Hugging Face layout, a model's or an adapter's, or a run's; `InputError` tells what is wrong."""
    adapter, directory = adapter_of(directory), find_model_directory(directory)
    config, weights = read_model_directory(directory)
    try:
        if adapter is not None:
            config, weights = merged(config, weights, Adapter.parse(*read_adapter_directory(adapter)))
        model = moved(hugging_face.build(config, weights), device, directory).eval()
    except ValueError as error:
        raise InputError(f"{directory}: {error}") from None
    tokenizer = read_tokenizer(directory)
    if tokenizer.vocabulary > model.config.vocabulary:
        raise InputError(
            f"{directory}: its tokenizer has {tokenizer.vocabulary} tokens, its model only {model.config.vocabulary}"
        )
    return LanguageModel(model, tokenizer, frozenset(_read_stops(directory, tokenizer.vocabulary)))


def _read_stops(directory: Path, vocabulary: int) -> list[int]:
    """The tokens at which the folder's model is to stop, by its `generation_config.json`: one, or several."""
    path = directory / "generation_config.json"
    if not path.exists():
        return []
    settings = read_json(path)
    said = settings.get("eos_token_id") if isinstance(settings, dict) else None
    stops = said if isinstance(said, list) else [] if said is None else [said]
    if wrong := [token for token in stops if not isinstance(token, int) or not 0 <= token < vocabulary]:
        raise InputError(f"{path}: 'eos_token_id' has {wrong[0]!r}, which is no token of the model's")
    return stops


def generate(
    language: LanguageModel,
    prompt: str,
    tokens: int,
    sampling: Sampling | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
    constraint: Constraint | None = None,
    beams: int = 1,
    weights: Format = "fp32",
) -> Iterator[str]:
    """The prompt's continuation, in pieces of whole characters, up to `tokens` tokens.

    Ends at an end-of-text token or before the first `stop` string, none of which is part of the text. When the context is
    full, the oldest half is forgotten. The same seed gives the same text. `constraint`: what the text must be; `beams`:
    above 1, search for the likeliest text, instead of drawing one; `weights`: how they are kept.
    """
    model = language.model
    if not model.config.causal:
        raise InputError("this model sees both ways, so it can't go on with a text: give one with [MASK] to find words in")
    # an empty prompt starts where documents start; of a long one, what is read leaves room for a token
    given = language.tokenizer.encode(prompt).tolist() or [language.tokenizer.end_of_text]
    given = given[-max(1, model.config.context - 1) :]
    request = Request(
        tuple(given), tokens, sampling or Sampling(), seed, tuple(stop), constraint=constraint, beams=beams,
    )  # fmt: skip
    runner = make_runner(model, beams, min(len(given) + tokens, model.config.context), weights)
    yield from write(request, Scheduler(runner, language.tokenizer, language.ends, chunk=None, endless=True))


def write(request: Request, scheduler: Scheduler) -> Iterator[str]:
    """One text, while nothing else is written; `ShoalError` where it fails."""
    pieces: deque[Piece] = deque()
    scheduler.add(scheduler.prepare(request, pieces.append))
    while scheduler.busy:
        scheduler.step()
        while pieces:
            piece = pieces.popleft()
            if piece.finish == "failed":
                raise ShoalError(piece.text)
            if piece.text:
                yield piece.text
