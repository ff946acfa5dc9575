"""A runner's logits are the training model's, whatever its slots have held, and in whatever company they are computed."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.machine import cpp_compiler
from shoal.models.cache import make_cache
from shoal.models.reach import Reach
from shoal.models.transformer import Transformer
from shoal.serve.native_runner import native_runner
from shoal.serve.runner import Runner, TorchRunner
from tests.models.shapes import FAMILIES, GPT2, random_model

MODELS = {name: random_model(config) for name, config in FAMILIES.items()}
# of a shape that the library computes
WIDE = {name: random_model(replace(config, dim=32, head_dim=16, hidden=64), scale=0.1) for name, config in FAMILIES.items()}
SLOTS = 4
RUNNERS: dict[str, tuple[dict[str, Transformer], Callable[[Transformer, int, int], Runner | None]]] = {
    "torch": (MODELS, TorchRunner),
    "native": (WIDE, native_runner),
}
tokens = st.integers(0, GPT2.vocabulary - 1)


def assert_logits_follow(model: Transformer, text: list[int], logits_V: torch.Tensor) -> None:
    with torch.no_grad():
        expected_V = model.project(model(torch.tensor([text]))[0, -1])
    assert logits_V.dtype == torch.float32
    torch.testing.assert_close(logits_V, expected_V, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kind", ["torch", pytest.param("native", marks=pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler"))]
)
@settings(deadline=None, max_examples=40)
@given(family=st.sampled_from(sorted(FAMILIES)), data=st.data())
def test_logits_are_those_of_the_whole_text(kind: str, family: str, data: st.DataObject) -> None:
    models, make = RUNNERS[kind]
    model = models[family]
    runner = make(model, SLOTS, GPT2.context)
    assert runner is not None
    texts: list[list[int]] = [[] for _ in range(SLOTS)]
    for _ in range(data.draw(st.integers(1, 6))):
        slot = data.draw(st.integers(0, SLOTS - 1))
        match data.draw(st.sampled_from(["read", "copy", "step"])):
            case "read":
                start = data.draw(st.integers(0, min(len(texts[slot]), GPT2.context - 1)))
                new = data.draw(st.lists(tokens, min_size=1, max_size=GPT2.context - start))
                texts[slot] = [*texts[slot][:start], *new]
                assert_logits_follow(model, texts[slot], runner.read(slot, new, start))
            case "copy":
                source = data.draw(st.integers(0, SLOTS - 1))
                length = data.draw(st.integers(0, len(texts[source])))
                runner.copy(source, slot, length)
                texts[slot] = texts[source][:length]
            case "step":
                ready = [number for number, text in enumerate(texts) if len(text) < GPT2.context]
                if chosen := data.draw(st.lists(st.sampled_from(ready), unique=True)) if ready else []:
                    new = data.draw(st.lists(tokens, min_size=len(chosen), max_size=len(chosen)))
                    for number, token, logits_V in zip(chosen, new, runner.step(chosen, new), strict=True):
                        texts[number].append(token)
                        assert_logits_follow(model, texts[number], logits_V)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_that_sees_itself_both_ways_is_read_so(family: str) -> None:
    model, text = MODELS[family], [3, 1, 4, 1, 5, 9, 2, 6]
    runner = TorchRunner(model, 2, GPT2.context, prefix=5)
    runner.read(1, text[:6], 0)
    with torch.no_grad():
        expected_V = model.project(model(torch.tensor([text]), reach=Reach.of_prefix(torch.tensor([5]), len(text)))[0, -1])
    torch.testing.assert_close(runner.read(1, text[6:], 6), expected_V, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_halved_for_a_gpu_gives_nearly_the_same_logits_and_keeps_its_rotary_angles(family: str) -> None:
    config, text = FAMILIES[family], [3, 1, 4, 1, 5, 9, 2, 6]
    model = random_model(config)
    exact, halved = TorchRunner(random_model(config), 3, GPT2.context), TorchRunner(model, 3, GPT2.context, half=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers()} <= {torch.float32}
    for runner in (exact, halved):
        runner.read(0, text[:5], 0)
        runner.read(2, text, 0)
    for token in (7, 2):  # texts of different lengths, in rows that are no neighbours
        found, expected = halved.step([0, 2], [token, token]), exact.step([0, 2], [token, token])
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("rows", [[0, 2], [0, 1]], ids=["apart", "neighbours"])
@pytest.mark.parametrize("lengths", [[4, 4], [4, 3]], ids=["level", "of different lengths"])
def test_a_cache_takes_up_keys_of_another_type(rows: list[int], lengths: list[int]) -> None:
    cache = make_cache(1, 3, 2, 8, 4, torch.zeros(1, dtype=torch.bfloat16))
    cache.lengths[rows] = torch.tensor(lengths)
    _, (layer,) = cache.part(rows).layers(1)
    new = torch.randn(2, 2, 1, 4, generator=torch.Generator().manual_seed(1))
    keys, _ = layer.extend(new, new)
    for row, length in enumerate(lengths):
        assert torch.equal(keys[row, :, length], new[row, :, 0].bfloat16())


def test_a_slot_is_no_longer_than_the_context() -> None:
    assert TorchRunner(MODELS["gpt2"], 1, 1000).capacity == GPT2.context
