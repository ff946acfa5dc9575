"""A model's folder: complete or absent, and every damage told."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shoal.core.errors import InputError
from shoal.core.files import write_json, write_text
from shoal.core.model_directory import (
    find_model_directory,
    read_model_directory,
    read_model_names,
    write_model_directory,
)
from shoal.core.tensors import write_tensors

CONFIG = {"model_type": "gpt2", "eos_token_id": 3}


def write_tokenizer(folder: Path) -> None:
    write_text(folder / "tokenizer.json", "{}")


def write(directory: Path, value: float = 1.0, tokenizer: Callable[[Path], None] = write_tokenizer) -> None:
    write_model_directory(directory, CONFIG, {"a": torch.full((2,), value)}, tokenizer, "# A model\n")


def test_a_folder_holds_all_that_the_hugging_face_layout_asks_for(tmp_path: Path) -> None:
    write(tmp_path / "runs" / "model")
    folder = tmp_path / "runs" / "model"
    assert {file.name for file in folder.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md",
    }  # fmt: skip
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 3
    config, weights = read_model_directory(folder)
    assert config == CONFIG
    assert torch.equal(weights["a"], torch.ones(2))


@pytest.mark.parametrize(
    ("architecture", "continues"),
    [
        ("GPT2LMHeadModel", True), ("Qwen3ForCausalLM", True), ("BertForMaskedLM", False), ("BertForPreTraining", False),
        ("ModernBertForMaskedLM", False), ("BertModel", False),
    ],
)  # fmt: skip
def test_only_what_goes_on_with_a_text_says_how_to(tmp_path: Path, architecture: str, continues: bool) -> None:
    config = {"architectures": [architecture], "eos_token_id": 3}
    write_model_directory(tmp_path / "model", config, {"a": torch.ones(2)}, write_tokenizer, "")
    assert (tmp_path / "model" / "generation_config.json").exists() == continues


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write(tmp_path / "model")
    (tmp_path / "model" / "stale.txt").write_text("x")
    write(tmp_path / "model", 2.0)
    assert torch.equal(read_model_directory(tmp_path / "model")[1]["a"], torch.full((2,), 2.0))
    assert not (tmp_path / "model" / "stale.txt").exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_a_folder_that_can_not_be_finished_leaves_the_old_one_whole(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise InputError("no tokenizer")

    write(tmp_path / "model")
    with pytest.raises(InputError, match="no tokenizer"):
        write(tmp_path / "model", 2.0, fail)
    assert torch.equal(read_model_directory(tmp_path / "model")[1]["a"], torch.ones(2))
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_the_model_of_a_run_is_found_in_the_run_s_folder(tmp_path: Path) -> None:
    write(tmp_path / "run" / "model")
    assert find_model_directory(tmp_path / "run") == tmp_path / "run" / "model"
    assert find_model_directory(tmp_path / "run" / "model") == tmp_path / "run" / "model"
    assert read_model_directory(tmp_path / "run")[0] == CONFIG


def test_weights_in_several_files_are_read_together(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", CONFIG)
    write_tensors(tmp_path / "one.safetensors", {"a": torch.ones(2)})
    write_tensors(tmp_path / "two.safetensors", {"b": torch.zeros(3)})
    places = {"a": "one.safetensors", "b": "two.safetensors"}
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": places})
    assert read_model_directory(tmp_path)[1].keys() == read_model_names(tmp_path)[1] == {"a", "b"}


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def replace(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: write_text(folder / name, content)


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("config.json"), "not a model folder, it has no config.json"),
        (remove("model.safetensors"), r"has no model\.safetensors; weights in other formats .* are pickles"),
        (replace("config.json", '{"a": '), r"config\.json: not valid JSON"),
        (replace("config.json", "[1]"), r"config\.json: not a JSON object"),
        (replace("config.json", "null"), r"config\.json: not a JSON object"),
        (replace("model.safetensors", "words"), r"model\.safetensors: not a whole safetensors file"),
        (replace(INDEX, "{}"), "index.json: has no 'weight_map'"),
        (replace(INDEX, "[]"), "index.json: not a JSON object"),
        (replace(INDEX, '{"weight_map": {"a": "b.safetensors"}}'), r"b\.safetensors: no such file"),
    ],
)
def test_a_damaged_folder_is_told_with_what_is_wrong(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    write(tmp_path / "model")
    damage(tmp_path / "model")
    for read in (read_model_directory, read_model_names):
        with pytest.raises(InputError, match=message):
            read(tmp_path / "model")


def test_what_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(InputError, match=f"{path}: no such model folder"):
            read_model_directory(path)
