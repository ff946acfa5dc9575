"""Heads over tokens: the scores of `transformers`' classes for tokens and spans, in and out of their folders."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForTokenClassification

from shoal.core.model_directory import read_model_directory, write_model_directory
from shoal.models import hugging_face
from shoal.models.config import TransformerConfig
from tests.models.shapes import BERT, GPT2, LLAMA, MODERNBERT, QWEN3, random_model, random_tokens

BODY: dict[str, Any] = {"tied": True, "head_bias": False}
ENCODERS = {"bert": replace(BERT, pooler=False, transform=False, **BODY), "modernbert": replace(MODERNBERT, **BODY)}
DECODERS = {"gpt2": GPT2, "llama": replace(LLAMA, tied=True), "qwen3": QWEN3}
KINDS = {"token": (AutoModelForTokenClassification, 5), "span": (AutoModelForQuestionAnswering, 2)}
CASES = [
    *((name, kind) for name in ENCODERS for kind in KINDS),
    ("gpt2", "token"), ("gpt2", "span"), ("llama", "token"), ("qwen3", "token"),
]  # fmt: skip


def shape(name: str, kind: Any) -> TransformerConfig:
    config = (ENCODERS | DECODERS)[name]
    return replace(config, head=kind, outputs=KINDS[kind][1], pooling="last" if config.causal else "first")


@torch.no_grad()
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_scores_are_those_of_transformers_and_folders_are_read_on_both_sides(tmp_path: Path, name: str, kind: str) -> None:
    config = shape(name, kind)
    ours, tokens = random_model(config), random_tokens(config)
    written = hugging_face.config_to_hugging_face(config)
    write_model_directory(tmp_path / "ours", written, hugging_face.weights_to_hugging_face(ours), lambda _: None, "")
    auto: Any = KINDS[kind][0]
    theirs, report = auto.from_pretrained(tmp_path / "ours", local_files_only=True, output_loading_info=True)
    assert not any(report.values()), report
    found = theirs.eval()(tokens)
    expected = found.logits if kind == "token" else torch.stack((found.start_logits, found.end_logits), -1)
    torch.testing.assert_close(ours.score_tokens(ours(tokens)), expected, rtol=1e-5, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again = hugging_face.build(*read_model_directory(tmp_path / "theirs"))
    assert again.config.head == kind
    for parameter, value in ours.state_dict().items():
        assert torch.equal(again.state_dict()[parameter], value), parameter
