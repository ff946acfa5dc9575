"""Models that only `transformers` knows are fine-tuned, written and read again, with its own hidden states."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, ElectraConfig, ElectraModel, OPTConfig, OPTForCausalLM, PreTrainedModel, T5Config

from shoal.data.tokenizer import train_bpe
from shoal.train.foreign import is_foreign, read_foreign
from tests.cli.conftest import Shoal

SMALL: dict[str, Any] = {"vocab_size": 300, "max_position_embeddings": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "electra": ElectraModel(ElectraConfig(**SMALL, hidden_size=16, embedding_size=16, intermediate_size=32)),
    "opt": OPTForCausalLM(OPTConfig(**SMALL, hidden_size=16, ffn_dim=32, word_embed_proj_dim=16, dropout=0.0)),
}


def write(model: PreTrainedModel, folder: Path) -> Path:
    model.eval().save_pretrained(folder)
    texts = ["a good film of good people", "a bad film of bad people"]
    train_bpe(texts * 50, 270).write(folder)
    return folder


def write_examples(path: Path) -> Path:
    lines = [{"text": f"a {word} film {number}", "label": word} for number in range(16) for word in ("good", "bad")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("name", ["electra", pytest.param("opt", marks=pytest.mark.thorough)])
def test_a_model_without_code_of_our_own_is_fine_tuned(name: str, tmp_path: Path, shoal: Shoal) -> None:
    folder, data = write(MODELS[name], tmp_path / "base"), write_examples(tmp_path / "examples.jsonl")
    assert is_foreign(folder)
    words = ["finetune", "--task", "classify", "--model", folder, "--data", data, "--runs", tmp_path / "runs", "--json",
             "--train.global_batch", "8", "--train.epochs", "5", "--optimizer.learning_rate", "0.02"]  # fmt: skip
    result = json.loads(shoal(*words).out)
    assert result["eval_accuracy"] == 1.0
    again = json.loads(shoal("evaluate", tmp_path / "runs/run", "--data", data, "--json").out)
    assert again["eval_accuracy"] == 1.0
    body = AutoModel.from_pretrained(tmp_path / "runs/run/model")
    ours = read_foreign(tmp_path / "runs/run/model").eval()
    tokens = torch.from_numpy(np.arange(10).reshape(2, 5))
    assert torch.equal(body.eval()(tokens).last_hidden_state, ours(tokens))


def test_an_encoder_with_a_decoder_is_refused(tmp_path: Path, shoal: Shoal) -> None:
    write(MODELS["electra"], tmp_path)
    T5Config(vocab_size=300).save_pretrained(tmp_path)
    words = ["finetune", "--task", "classify", "--model", tmp_path, "--data", write_examples(tmp_path / "e.jsonl")]
    failed = shoal(*words, "--runs", tmp_path / "runs")
    assert failed.code == 2
    assert "an encoder and a decoder" in failed.error
