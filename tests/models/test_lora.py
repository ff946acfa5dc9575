"""Low-rank changes: peft computes the same from what is written here, and the same is computed from what peft writes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from shoal.core.model_directory import (
    read_adapter_directory,
    read_model_directory,
    write_adapter_directory,
    write_model_directory,
)
from shoal.core.native import matrices
from shoal.models import hugging_face
from shoal.models.config import TransformerConfig
from shoal.models.hugging_face.adapters import Adapter, adapter_files, changes_from_hugging_face, merged
from shoal.models.lora import PLACES, Change, adapt, changes_of, fold, fresh_changes
from shoal.models.transformer import Transformer
from shoal.train.model_setup import use_native_kernels
from tests.models.shapes import BERT, GPT2, LLAMA, MODERNBERT, QWEN3, random_model, random_tokens

CLASSIFIER = replace(
    BERT, transform=False, head_bias=False, head="sequence", outputs=3, pooling="first", dropout=0.0, norm_epsilon=1e-6
)
MODELS: dict[str, tuple[TransformerConfig, Any]] = {
    "bert": (CLASSIFIER, AutoModelForSequenceClassification),
    "modernbert": (replace(MODERNBERT, window=0, global_every=1), AutoModelForMaskedLM),
    "gpt2": (GPT2, AutoModelForCausalLM),
    "llama": (LLAMA, AutoModelForCausalLM),
    "qwen3": (QWEN3, AutoModelForCausalLM),
}
MODULES = {
    "bert": ["query", "key", "attention.output.dense", "intermediate.dense"],
    "modernbert": ["Wqkv", "Wi", "mlp.Wo"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "llama": ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
    "qwen3": ["k_proj", "v_proj", "up_proj"],
}


def targets_of(config: TransformerConfig) -> list[str]:
    return [target for target in PLACES if config.gated or target != "gate"]


def random_changes(config: TransformerConfig, targets: list[str], rank: int = 3) -> dict[str, dict[str, Change]]:
    random = torch.Generator().manual_seed(5)
    fresh = fresh_changes(config, targets, rank, 2.0 * rank, random)
    return {
        module: {name: replace(it, b=torch.randn(it.b.shape, generator=random) * 0.2) for name, it in its.items()}
        for module, its in fresh.items()
    }


@torch.no_grad()
def logits_of(model: Transformer, tokens: Tensor) -> Tensor:
    hidden = model.eval()(tokens)
    if not model.config.head:
        return model.project(hidden)
    starts = torch.arange(len(tokens)) * tokens.shape[1]
    return model.score_texts(hidden, starts, torch.full_like(starts, tokens.shape[1]))


def write(folder: Path, model: Transformer) -> None:
    weights = hugging_face.weights_to_hugging_face(model)
    write_model_directory(folder, hugging_face.config_to_hugging_face(model.config), weights, lambda _: None, "")


def assert_close(mine: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("targets", [["query", "value"], None], ids=["two targets", "all targets"])
def test_peft_computes_the_same_from_an_adapter_that_shoal_wrote(tmp_path: Path, name: str, targets: Any) -> None:
    config, loader = MODELS[name]
    model = random_model(config)
    write(tmp_path / "base", model)
    tokens = random_tokens(config)
    before = logits_of(model, tokens)
    adapt(model, random_changes(config, targets or targets_of(config)))
    if model.task_head is not None:
        torch.nn.init.normal_(model.task_head.score.weight)  # the head is learnt, too
    after = logits_of(model, tokens)
    assert (after - before).abs().max() > 0.01
    changes = changes_of(model)
    fold(model)
    assert_close(logits_of(model, tokens), after)
    weights = hugging_face.weights_to_hugging_face(model)
    write_adapter_directory(tmp_path / "adapter", *adapter_files(changes, config, weights, str(tmp_path / "base"), 0.0))
    theirs = PeftModel.from_pretrained(loader.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert_close(after, theirs(input_ids=tokens).logits)
    again = changes_from_hugging_face(Adapter.parse(*read_adapter_directory(tmp_path / "adapter")), config)
    rest = random_model(config)
    if rest.task_head is not None and model.task_head is not None:
        rest.task_head.load_state_dict(model.task_head.state_dict())
    adapt(rest, again)
    assert_close(logits_of(rest, tokens), after)


@pytest.mark.parametrize("name", MODELS)
def test_shoal_computes_the_same_from_an_adapter_that_peft_wrote(tmp_path: Path, name: str) -> None:
    config, loader = MODELS[name]
    model = random_model(config)
    write(tmp_path / "base", model)
    torch.manual_seed(3)
    settings = LoraConfig(
        r=4, lora_alpha=7, target_modules=MODULES[name], init_lora_weights=False, use_rslora=name == "llama",
        rank_pattern={MODULES[name][0]: 2}, alpha_pattern={MODULES[name][1]: 3},
        task_type="SEQ_CLS" if config.head else None,
    )  # fmt: skip
    theirs = get_peft_model(loader.from_pretrained(tmp_path / "base"), settings).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    tokens = random_tokens(config)
    with torch.no_grad():
        expected = theirs(input_ids=tokens).logits
    adapter = Adapter.parse(*read_adapter_directory(tmp_path / "adapter"))
    whole = hugging_face.build(*merged(*read_model_directory(tmp_path / "base"), adapter))
    assert_close(logits_of(whole, tokens), expected)
    adapt(model, changes_from_hugging_face(adapter, config))
    assert_close(logits_of(model, tokens), expected)


def test_an_adapter_under_a_head_of_our_own_is_one_of_the_body(tmp_path: Path) -> None:
    config = replace(CLASSIFIER, pooling="mean", pooler=False)
    body, model = random_model(replace(config, head="", outputs=0)), random_model(config)
    write(tmp_path / "base", body)
    adapt(model, random_changes(config, ["value", "down"]))
    tokens = random_tokens(config)
    changes, expected, hidden = changes_of(model), logits_of(model, tokens), model(tokens)
    fold(model)
    files = adapter_files(changes, config, hugging_face.weights_to_hugging_face(model), "base", 0.0)
    write_adapter_directory(tmp_path / "adapter", *files)
    theirs = PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    assert_close(theirs(input_ids=tokens).last_hidden_state, hidden)
    adapter = Adapter.parse(*read_adapter_directory(tmp_path / "adapter"))
    assert_close(logits_of(hugging_face.build(*merged(*read_model_directory(tmp_path / "base"), adapter)), tokens), expected)


def test_an_adapter_brings_its_head_to_a_body_without_one(tmp_path: Path) -> None:
    body = replace(CLASSIFIER, head="", outputs=0)
    write(tmp_path / "base", random_model(body))
    model = random_model(CLASSIFIER, seed=2)
    model.load_state_dict(random_model(body).state_dict(), strict=False)
    adapt(model, random_changes(CLASSIFIER, ["out"]))
    changes, tokens = changes_of(model), random_tokens(CLASSIFIER)
    expected = logits_of(model, tokens)
    fold(model)
    files = adapter_files(changes, CLASSIFIER, hugging_face.weights_to_hugging_face(model), "base", 0.0)
    whole = hugging_face.build(*merged(*read_model_directory(tmp_path / "base"), Adapter.parse(*files)))
    assert_close(logits_of(whole, tokens), expected)


@pytest.mark.parametrize("config", [CLASSIFIER, QWEN3, LLAMA], ids=["bert", "qwen3", "llama"])
def test_changes_on_the_native_kernels_equal_float64(config: TransformerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "LEAST_WORK", 0)
    monkeypatch.setattr(matrices, "serves", lambda: True)
    config = replace(config, dim=32, head_dim=16, heads=2, kv_heads=1 if config.causal else 2, hidden=48)
    changes = random_changes(config, targets_of(config))
    gradients = []
    for double in (False, True):
        model = random_model(config, scale=0.1)
        adapt(model, changes)
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad_(".lora." in parameter_name)
        use_native_kernels(model, "fp32", 1 << 20)
        model = model.double() if double else model
        model(random_tokens(config)).square().sum().backward()
        gradients.append({name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) == 2 * config.layers * len(targets_of(config))
    for name, expected in gradients[1].items():
        torch.testing.assert_close(
            gradients[0][name], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()), msg=name
        )


LEARNT: dict[str, Callable[[str], bool]] = {
    "all": lambda name: True,
    "nothing but the head": lambda name: name.startswith("head."),
    "the last block and the head": lambda name: name.startswith(("blocks.1.", "norm.", "head.")),
}


@pytest.mark.parametrize("learnt", LEARNT)
def test_the_formula_for_flops_leaves_out_what_is_not_learnt(learnt: str) -> None:
    model = random_model(LLAMA)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(LEARNT[learnt](name))
    B, T = 2, 16
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model.project(model(random_tokens(LLAMA, B, T))).sum().backward()
    counted, told = counter.get_total_flops(), model.flops_per_token(T) * B * T
    # the counter sees the whole square of attention, of which the causal half is needed
    square = {"all": 12 * 2, "nothing but the head": 4 * 2, "the last block and the head": 4 + 12}[learnt]
    told += square * B * T * T * LLAMA.heads * LLAMA.head_dim / 2
    assert told == counted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "kind 'IA3' is not supported"),
        ({"use_dora": True}, "'use_dora' True is not supported"),
    ],
)
def test_an_adapter_that_is_something_else_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adapter.parse({"peft_type": "LORA", **settings}, {})


def test_an_adapter_of_another_model_is_refused() -> None:
    config, tensors = adapter_files(random_changes(QWEN3, ["query"]), QWEN3, {}, "base", 0.0)
    other = replace(QWEN3, head_dim=8)
    base = hugging_face.config_to_hugging_face(other), hugging_face.weights_to_hugging_face(random_model(other))
    with pytest.raises(ValueError, match=r"q_proj' by a matrix of \[24, 16\]; the model has one of \[32, 16\]"):
        merged(*base, Adapter.parse(config, tensors))
    with pytest.raises(ValueError, match="has 24 rows, the matrix 32"):
        changes_from_hugging_face(Adapter.parse(config, tensors), other)
