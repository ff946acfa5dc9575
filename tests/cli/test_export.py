"""`shoal export`: files for other programs, or one line that says why not."""

import json
from pathlib import Path

import pytest
import torch

from shoal.core.model_directory import read_model_directory, write_adapter_directory
from shoal.export.hugging_face import write_hugging_face
from tests.cli.conftest import Shoal
from tests.export.subjects import subject


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 with byte-level BPE, and what its `config.json` says of a task."""
    path = tmp_path_factory.mktemp("export") / "small"
    write_hugging_face(path, subject("gpt2"))
    return path


def test_a_model_is_written_checked_and_told(shoal: Shoal, folder: Path) -> None:
    pytest.importorskip("gguf")
    told = json.loads(shoal("export", folder, "--format", "gguf", "--dtype", "fp16", "--json").out)
    assert (told["path"], told["dtype"], told["bytes"]) == ("small.gguf", "fp16", Path("small.gguf").stat().st_size)
    assert told["check"]["difference"] <= told["check"]["allowed"]
    again = shoal("export", folder, "--format", "gguf")
    assert again.code == 2
    assert again.error.startswith(
        "small.gguf: is there already; give another place by --out, or let it be replaced: --replace"
    )
    before = Path("small.gguf").read_bytes()
    assert shoal("export", folder, "--format", "gguf", "--replace", "--no-check").code == 0
    assert Path("small.gguf").read_bytes() != before


def test_a_run_is_exported_under_its_name(shoal: Shoal, folder: Path) -> None:
    Path("runs/fish").mkdir(parents=True)
    Path("runs/fish/model").symlink_to(folder)
    Path("runs/fish/recipe.yaml").write_text("name: fish\n")
    for given in ("runs/fish", "runs/fish/model"):
        outcome = shoal("export", given, "--format", "hf", "--no-check", "--replace")
        assert outcome.code == 0
        assert outcome.out.startswith("fish-hf: ")
        assert "not checked" in outcome.out
    assert read_model_directory(Path("fish-hf"))[1].keys() == read_model_directory(folder)[1].keys()


def test_an_adapter_is_merged_into_its_model(shoal: Shoal, folder: Path) -> None:
    random = torch.Generator().manual_seed(1)
    name, a, b = "transformer.h.0.mlp.c_fc", torch.randn(2, 16, generator=random), torch.randn(40, 2, generator=random)
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "base_model_name_or_path": str(folder)}
    tensors = {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
    write_adapter_directory(Path("adapter"), said, tensors)
    assert shoal("export", "adapter", "--format", "hf", "--out", "merged", "--no-check").code == 0
    before, after = (read_model_directory(path)[1] for path in (folder, Path("merged")))
    assert [key for key, value in before.items() if not torch.equal(value, after[key])] == [f"{name}.weight"]
    torch.testing.assert_close(after[f"{name}.weight"] - before[f"{name}.weight"], 3 * (b @ a).T, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nowhere", "--format", "hf"], "nowhere: no such model folder"),
        (["EMPTY", "--format", "hf"], "EMPTY: not a model folder, it has no config.json"),
        (["CUT", "--format", "onnx"], "CUT/model.safetensors: not a whole safetensors file"),
        (["MODEL", "--format", "onnx", "--dtype", "fp16"], "--dtype fp16 is not for --format onnx; accepted there: fp32"),
        (["MODEL", "--format", "hf", "--dtype", "q8_0"], "--dtype q8_0 is not for --format hf; accepted there: fp32, bf16"),
        (["MODEL", "--format", "hf", "--out", "MODEL"], "MODEL: is the model that is exported, or holds it"),
        (
            ["MODEL", "--format", "torch", "--out", "text.txt", "--replace"],
            "text.txt: is there already, and is nothing that",
        ),
        (["BERT", "--format", "gguf"], "GGUF is written of decoders that go on with a text, and this is an encoder"),
    ],
)
def test_what_can_not_be_exported_is_told(shoal: Shoal, folder: Path, words: list[str], expected: str) -> None:
    pytest.importorskip("gguf")
    Path("EMPTY").mkdir()
    Path("text.txt").write_text("not a model")
    Path("MODEL").symlink_to(folder)
    write_hugging_face(Path("BERT"), subject("bert"))
    write_hugging_face(Path("CUT"), subject("gpt2"))
    Path("CUT/model.safetensors").write_bytes(Path("CUT/model.safetensors").read_bytes()[:-7])
    outcome = shoal("export", *words)
    assert outcome.code == 2
    assert expected in outcome.error


def test_a_folder_of_a_kind_without_code_of_shoals_own_is_told(shoal: Shoal) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    GPTNeoXForCausalLM(config).save_pretrained("neox")
    subject("gpt2").tokenizer.write(Path("neox"))
    outcome = shoal("export", "neox", "--format", "torch")
    assert outcome.code == 2
    assert outcome.error.startswith("neox: a model that Shoal has no code of its own for (gpt_neox)")
