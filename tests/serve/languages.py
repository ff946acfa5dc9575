"""Small language models: random ones of every family, and one that recites a text."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from shoal.core.model_directory import write_model_directory
from shoal.data.tokenizer import TextTokenizer
from shoal.models import hugging_face
from shoal.models.config import TransformerConfig
from shoal.models.transformer import Transformer
from shoal.serve.generation import LanguageModel
from tests.models.shapes import GPT2, random_model


def write_language_model(directory: Path, tokenizer: TextTokenizer, config: TransformerConfig, seed: int = 1) -> Transformer:
    """Write a random model and its tokenizer as a folder in the Hugging Face layout."""
    return write_model(directory, tokenizer, random_model(config, seed))


def write_model(directory: Path, tokenizer: TextTokenizer, model: Transformer) -> Transformer:
    """Write a model and its tokenizer as such a folder."""
    write_model_directory(
        directory,
        hugging_face.config_to_hugging_face(model.config, tokenizer.end_of_text),
        hugging_face.weights_to_hugging_face(model),
        tokenizer.write,
        "# Random\n",
    )
    return model


def talkative(tokenizer: TextTokenizer, context: int) -> Transformer:
    """A random model that writes no special token, so that its texts end only where they must, and take some seconds."""
    model = random_model(replace(GPT2, vocabulary=tokenizer.vocabulary, context=context, tied=False, layers=8))
    assert model.head is not None
    with torch.no_grad():  # one place of every last state is 1, and weighs against these tokens alone
        model.norm.get_parameter("weight")[0] = 0
        model.norm.get_parameter("bias")[0] = 1
        model.head.weight[:, 0] = 0
        model.head.weight[list(tokenizer.special_tokens.values()), 0] = -1e4
    return model


def reciting(text: str | Sequence[int], tokenizer: TextTokenizer) -> LanguageModel:
    """A model that, after an empty prompt, writes this text (or these tokens) and ends.

    Each position has a direction of its own, and the head turns it into the text's token at that place.
    """
    tokens = tokenizer.encode(text).tolist() if isinstance(text, str) else list(text)
    script = [*tokens, tokenizer.end_of_text]
    size = len(script) + 1
    model = Transformer(
        TransformerConfig(
            vocabulary=tokenizer.vocabulary, context=size, layers=1, dim=size, heads=1, kv_heads=1, head_dim=size,
            hidden=1, tied=False,
        )
    ).materialise()  # fmt: skip
    assert model.position is not None and model.head is not None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.norm.get_parameter("weight").fill_(1)
        model.position.weight.copy_(torch.eye(size))
        model.head.weight[script, torch.arange(len(script))] = 1
    return LanguageModel(model.eval(), tokenizer)
