"""Intervals of attention: documents keep to themselves, whatever stands beside them."""

from dataclasses import replace

import pytest
import torch

from shoal.models.config import TransformerConfig
from shoal.models.reach import Reach
from tests.models.shapes import BERT, GPT2, MODERNBERT, QWEN3, random_model, random_tokens

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2], [4, 4, 4, 4, 4, 4, -1, -1]])


def test_documents_are_runs_of_equal_numbers() -> None:
    low, high = Reach.of_documents(DOCUMENTS, causal=False)
    assert low.tolist() == [[0, 0, 0, 3, 3, 5, 5, 5], [0, 0, 0, 0, 0, 0, 6, 6]]
    assert high is not None
    assert high.tolist() == [[3, 3, 3, 5, 5, 8, 8, 8], [6, 6, 6, 6, 6, 6, 8, 8]]
    assert Reach.of_documents(DOCUMENTS, causal=True).high is None


def test_positions_begin_with_the_document() -> None:
    assert Reach.of_documents(DOCUMENTS, causal=True).positions().tolist()[0] == [0, 1, 2, 0, 1, 0, 1, 2]


def test_a_window_narrows_both_sides_and_leaves_the_document() -> None:
    low, high = Reach.of_documents(DOCUMENTS, causal=False).within(1)
    assert high is not None
    assert low.tolist()[0] == [0, 0, 1, 3, 3, 5, 5, 6]
    assert high.tolist()[0] == [2, 3, 3, 5, 5, 7, 8, 8]


def test_padding_sees_itself_alone_and_text_all_of_its_row() -> None:
    low, high = Reach.of_mask(torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]))
    assert high is not None
    assert low.tolist() == [[0, 0, 0, 3, 4], [0, 1, 1, 1, 1], [0, 1, 2, 3, 4], [0] * 5]
    assert high.tolist() == [[3, 3, 3, 4, 5], [1, 5, 5, 5, 5], [1, 2, 3, 4, 5], [5] * 5]
    assert (low.dtype, high.dtype) == (torch.int32, torch.int32)


def test_padding_inside_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match="padding inside a text"):
        Reach.of_mask(torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]]))


@pytest.mark.parametrize("config", [BERT, MODERNBERT], ids=["bert", "modernbert"])
def test_a_padded_row_gets_what_it_gets_alone_whatever_side_is_padded(config: TransformerConfig) -> None:
    model = random_model(config).double()
    text = random_tokens(config, batch=1, length=9)
    for before in (0, 4, 15):
        tokens, mask = random_tokens(config, batch=1, length=24), torch.zeros(1, 24, dtype=torch.bool)
        tokens[:, before : before + 9], mask[:, before : before + 9] = text, True
        padded = model(tokens, reach=Reach.of_mask(mask))[mask][None]
        torch.testing.assert_close(padded, model(text), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("config", [GPT2, QWEN3, BERT, MODERNBERT], ids=["gpt2", "qwen3", "bert", "modernbert"])
def test_a_packed_document_gets_what_it_gets_alone(config: TransformerConfig) -> None:
    model = random_model(config).double()
    lengths = (7, 1, 10, 6)
    tokens = random_tokens(config, batch=2, length=24)
    documents = torch.arange(4).repeat_interleave(torch.tensor(lengths)).expand(2, 24)
    together = model(tokens, reach=Reach.of_documents(documents, config.causal))
    start = 0
    for length in lengths:
        alone = model(tokens[:, start : start + length])
        torch.testing.assert_close(together[:, start : start + length], alone, rtol=1e-9, atol=1e-9)
        start += length


@pytest.mark.parametrize("config", [GPT2, BERT], ids=["gpt2", "bert"])
def test_without_borders_a_document_depends_on_its_neighbours(config: TransformerConfig) -> None:
    model = random_model(config).double()
    tokens = random_tokens(config, batch=1, length=24)
    assert not torch.allclose(model(tokens)[:, 12:], model(tokens[:, 12:]))


@pytest.mark.parametrize("config", [GPT2, BERT], ids=["gpt2", "bert"])
def test_gradients_of_packed_rows_have_the_same_bits_whenever_two_threads_sum_them(config: TransformerConfig) -> None:
    config = replace(config, layers=1, dim=64, head_dim=16, context=256)
    tokens = random_tokens(config, batch=16, length=256)
    documents = torch.arange(4).repeat_interleave(64).expand(16, 256)

    def gradient(threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        model = random_model(config)
        assert model.position is not None
        model(tokens, reach=Reach.of_documents(documents, config.causal)).square().sum().backward()
        assert model.position.weight.grad is not None
        return model.position.weight.grad

    before = torch.get_num_threads()
    try:
        first = gradient(2)
        assert all(torch.equal(gradient(2), first) for _ in range(4))
    finally:
        torch.set_num_threads(before)
