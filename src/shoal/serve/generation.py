"""A model and its tokenizer, and the text they continue, piece by piece."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from shoal.core.errors import InputError
from shoal.core.model_directory import adapter_of, find_model_directory, read_adapter_directory, read_model_directory
from shoal.core.seeds import generator
from shoal.data.tokenizer import TextTokenizer, read_tokenizer
from shoal.models import hugging_face
from shoal.models.cache import Cache, make_cache
from shoal.models.hugging_face.adapters import Adapter, merged
from shoal.models.transformer import Transformer
from shoal.serve.sampling import Sampling, draw


@dataclass(frozen=True)
class LanguageModel:
    """What generating needs."""

    model: Transformer
    tokenizer: TextTokenizer


def load_language_model(directory: Path, device: str | torch.device = "cpu") -> LanguageModel:
    """Read a folder in the Hugging Face layout, a model's or an adapter's, or a run's; `InputError` tells what is wrong."""
    adapter, directory = adapter_of(directory), find_model_directory(directory)
    config, weights = read_model_directory(directory)
    try:
        if adapter is not None:
            config, weights = merged(config, weights, Adapter.parse(*read_adapter_directory(adapter)))
        model = hugging_face.build(config, weights).to(device).eval()
    except ValueError as error:
        raise InputError(f"{directory}: {error}") from None
    tokenizer = read_tokenizer(directory)
    if tokenizer.vocabulary > model.config.vocabulary:
        raise InputError(
            f"{directory}: its tokenizer has {tokenizer.vocabulary} tokens, its model only {model.config.vocabulary}"
        )
    return LanguageModel(model, tokenizer)


@torch.inference_mode()
def generate(
    language: LanguageModel,
    prompt: str,
    tokens: int,
    sampling: Sampling | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """The prompt's continuation, in pieces of whole characters, up to `tokens` tokens.

    Ends at the end-of-text token or before the first `stop` string, none of which is part of the text. When the context is
    full, the oldest half is forgotten. The same seed gives the same text.
    """
    model, tokenizer = language.model, language.tokenizer
    if not model.config.causal:
        raise InputError("this model sees both ways, so it can't go on with a text: give one with [MASK] to find words in")
    sampling = sampling or Sampling()
    random = generator(seed, "generate")
    context = model.config.context
    # an empty prompt starts where documents start
    sequence = tokenizer.encode(prompt).tolist() or [tokenizer.end_of_text]
    pending = sequence[-context + 1 :] if context > 1 else sequence[-1:]
    cache = _make_cache(model)
    produced: list[int] = []
    # some tokenizers write a space only between tokens, so what is new is read with what was before it
    given = len(tokenizer.decode(sequence))
    told = 0
    for _ in range(tokens):
        if cache.length + len(pending) > context:
            pending = (sequence + produced)[-(context // 2) or -1 :]
            cache = _make_cache(model)
        hidden = model(torch.tensor([pending], device=model.head_weight.device), cache)
        logits_V = model.project(hidden[0, -1])[: tokenizer.vocabulary]  # a model's may be rounded up
        token = draw(logits_V, sampling, random)
        if token == tokenizer.end_of_text:
            break
        produced.append(token)
        pending = [token]
        text = tokenizer.decode(sequence + produced)[given:]
        ends = [place for word in stop if (place := text.find(word)) >= 0]
        if ends:
            yield text[told : max(told, min(ends))]
            return
        # hold back what may become a stop string, or is half of a character
        safe = len(text) - max((_overlap(text, word) for word in stop), default=0)
        if not text.endswith("\ufffd") and safe > told:
            yield text[told:safe]
            told = safe
    rest = tokenizer.decode(sequence + produced)[given + told :]
    if rest:
        yield rest


def _make_cache(model: Transformer) -> Cache:
    config = model.config
    return make_cache(config.layers, 1, config.kv_heads, config.context, config.head_dim, model.head_weight)


def _overlap(text: str, word: str) -> int:
    """Length of the longest end of `text` that begins `word`."""
    return next((size for size in range(min(len(word), len(text)), 0, -1) if text.endswith(word[:size])), 0)
