"""The Hugging Face layout in other types: what `transformers` loads, and Shoal reads again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from shoal.core.errors import ShoalError
from shoal.core.files import read_json
from shoal.export.check import check
from shoal.export.hugging_face import write_hugging_face
from shoal.serve.generation import load_language_model
from tests.export.subjects import SHAPES, subject


@pytest.mark.parametrize(
    "shape", [pytest.param(name, marks=[] if name == "gpt2" else pytest.mark.thorough) for name in SHAPES]
)
def test_transformers_loads_it_in_half_the_size(shape: str, tmp_path: Path) -> None:
    model = subject(shape)
    write_hugging_face(tmp_path / "half", model, "bf16")
    with safe_open(tmp_path / "half" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    found = check("hf", tmp_path / "half", model, "bf16")
    if shape == "by attention":
        assert found is None  # transformers has no such head
        return
    assert found is not None
    assert found.difference < 1e-5
    assert 1e-4 < found.rounding < 1


def test_what_the_weights_do_not_tell_is_kept(tmp_path: Path) -> None:
    said = {"eos_token_id": 1, "shoal_task": {"name": "chat"}, "label2id": {"a": 0}, "torch_dtype": "float64"}
    write_hugging_face(tmp_path / "model", replace(subject("gpt2"), said=said, card="# A card\n"), "fp16")
    written = read_json(tmp_path / "model" / "config.json")
    assert {key: written[key] for key in ("eos_token_id", "shoal_task", "label2id", "dtype")} == {
        "eos_token_id": 1, "shoal_task": {"name": "chat"}, "label2id": {"a": 0}, "dtype": "float16",
    }  # fmt: skip
    assert "torch_dtype" not in written
    assert (tmp_path / "model" / "README.md").read_text() == "# A card\n"
    assert load_language_model(tmp_path / "model").model.config.dim == 16


def test_a_file_of_another_model_is_told(tmp_path: Path) -> None:
    write_hugging_face(tmp_path / "model", subject("gpt2"))
    other = subject("gpt2")
    with torch.no_grad():
        other.model.embedding.weight[0, 0] += 1
    with pytest.raises(ShoalError, match=r"computes something else of the export than the model: outputs differ by up to"):
        check("hf", tmp_path / "model", other)
