"""What is dropped in training: each kind by its own rate, and whole blocks."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from shoal.core.seeds import generator
from shoal.models import hugging_face
from shoal.models.config import TransformerConfig
from shoal.models.transformer import Transformer
from tests.models.shapes import BERT, FAMILIES, GPT2, LLAMA, fill, random_model, random_tokens

RATES = {"attention_dropout": 0.1, "residual_dropout": 0.2, "embedding_dropout": 0.3}


def test_each_kind_has_its_own_rate_and_follows_the_common_one_where_it_has_none() -> None:
    model = Transformer(replace(GPT2, dropout=0.5, attention_dropout=0.0, residual_dropout=0.25))
    assert model.dropout.p == 0.5
    assert model.blocks[0].dropout.p == 0.25
    assert model.blocks[0].attention.dropout == 0.0


@pytest.mark.parametrize("kind", RATES)
def test_a_kind_alone_changes_what_training_computes(kind: str) -> None:
    model, tokens = random_model(replace(GPT2, **{kind: 0.5})), random_tokens(GPT2)
    plain = random_model(GPT2)(tokens)
    assert torch.equal(model(tokens), plain)
    assert not torch.allclose(model.train()(tokens), plain)


def test_attention_that_drops_nothing_keeps_its_kernel() -> None:
    model = random_model(replace(GPT2, dropout=0.5, attention_dropout=0.0)).train()
    called = []
    for block in model.blocks:
        block.attention.kernel = lambda *inputs: called.append(1) or inputs[0]
        block.attention.packed_kernel = lambda *inputs: called.append(2)  # serves nobody
    model(random_tokens(GPT2))
    assert called == [2, 1] * GPT2.layers


@pytest.mark.parametrize("config", [GPT2, LLAMA, BERT], ids=["gpt2", "llama", "bert"])
def test_the_mean_over_what_may_be_left_out_is_the_block_itself(config: TransformerConfig) -> None:
    model = random_model(replace(config, layer_drop=0.25)).train()
    block, x = model.blocks[0], torch.randn(2, 5, config.dim, generator=torch.Generator().manual_seed(1))
    block.left_out = True
    left_out = block(x)
    block.left_out = False
    assert torch.equal(left_out, x)
    torch.testing.assert_close(0.25 * left_out + 0.75 * block(x), block.eval()(x), rtol=1e-5, atol=1e-5)


def test_blocks_are_left_out_as_often_as_asked_and_never_in_evaluation() -> None:
    config = replace(GPT2, layers=6, layer_drop=0.3)
    model, tokens = random_model(config), random_tokens(config)
    plain = random_model(replace(config, layer_drop=0.0))(tokens)
    counted: Counter[int] = Counter()
    for step in range(400):
        model.drop_layers(generator(1, "layer drop", step))
        counted.update(index for index, block in enumerate(model.blocks) if block.left_out)
    assert all(0.23 < counted[index] / 400 < 0.37 for index in range(6))
    assert torch.equal(model(tokens), plain)


def test_a_block_that_is_left_out_computes_nothing_and_gets_no_gradient() -> None:
    model = random_model(replace(GPT2, layer_drop=0.5)).train()
    model.blocks[0].left_out, model.blocks[1].left_out = True, False
    model.blocks[0].compute = None  # type: ignore[method-assign]
    model(random_tokens(GPT2)).sum().backward()
    assert all(parameter.grad is None for parameter in model.blocks[0].parameters())
    assert all(parameter.grad is not None for parameter in model.blocks[1].parameters())


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("rates", [{}, {"dropout": 0.4}, RATES, {"dropout": 0.2, "layer_drop": 0.1}], ids=str)
def test_rates_survive_the_hugging_face_layout(config: TransformerConfig, rates: dict[str, float]) -> None:
    given = replace(config, **rates)  # type: ignore[arg-type]
    written = hugging_face.config_to_hugging_face(given)
    assert ("layerdrop" in written) == ("layer_drop" in rates)
    read = hugging_face.config_from_hugging_face(written)
    for kind in ("attention", "residual", "embedding"):
        assert read.dropped(kind) == given.dropped(kind)  # type: ignore[arg-type]
    assert read.layer_drop == given.layer_drop


def test_a_common_rate_that_is_asked_for_beside_a_folder_holds_for_all_kinds() -> None:
    model = Transformer(replace(GPT2, **RATES)).materialise()
    fill(model)
    config, weights = hugging_face.config_to_hugging_face(model.config), hugging_face.weights_to_hugging_face(model)
    again = hugging_face.build(config, weights, dropout=0.5, embedding_dropout=0.0, layer_drop=None).config
    assert [again.dropped(kind) for kind in ("attention", "residual", "embedding")] == [0.5, 0.5, 0.0]
    assert hugging_face.build(config, weights).config.dropped("attention") == 0.1


def test_a_llama_of_others_drops_attention_alone() -> None:
    config = hugging_face.config_to_hugging_face(LLAMA)
    theirs = {key: value for key, value in config.items() if not key.endswith("_pdrop")} | {"attention_dropout": 0.1}
    read = hugging_face.config_from_hugging_face(theirs)
    assert [read.dropped(kind) for kind in ("attention", "residual", "embedding")] == [0.1, 0.0, 0.0]
