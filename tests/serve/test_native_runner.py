"""Decoding by the library: what the model computes, in every shape and whatever else is computed beside it."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from shoal.core.machine import cpp_compiler
from shoal.core.native.decode import Format, quantize
from shoal.models.config import TransformerConfig
from shoal.models.decoding import Decoding
from shoal.models.decoding import decode as decode_by_torch
from shoal.models.transformer import Transformer
from shoal.serve.native_runner import BLOCK, NativeRunner, native_runner
from tests.core.test_native_decode import dequantize

pytestmark = pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")

GPT = TransformerConfig(vocabulary=101, context=160, layers=2, dim=32, heads=2, kv_heads=2, head_dim=16, hidden=64)
LLAMA = replace(
    GPT, positions="rotary", norm="rms", activation="silu", gated=True, bias=False, tied=False, heads=4, kv_heads=2
)
SHAPES = {
    "gpt2": GPT,
    "exact gelu": replace(GPT, activation="gelu_erf", head_bias=True),
    "squared relu": replace(GPT, activation="relu2", bias=False),
    "norm of embeddings": replace(GPT, embedding_norm=True, first_norm=False),
    "llama": LLAMA,
    "qwen3": replace(LLAMA, qk_norm=True, tied=True, heads=12, kv_heads=2, norm_epsilon=1e-6),
    "wide heads": replace(GPT, heads=1, kv_heads=1, head_dim=96),
}


def build(config: TransformerConfig) -> Transformer:
    """With weights large enough that a mistake shows, norms and biases that aren't ones and zeros among them."""
    generator = torch.Generator().manual_seed(7)
    model = Transformer(config).materialise().initialise(generator, std=0.1).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def make(model: Transformer, slots: int = 3, weights: Format = "fp32") -> NativeRunner:
    runner = native_runner(model, slots, model.config.context, weights)
    assert runner is not None
    return runner


@torch.no_grad()
def whole(model: Transformer, text: list[int]) -> Tensor:
    """Logits [tokens, vocabulary] of the model's forward pass."""
    return model.project(model(torch.tensor([text])))[0]


TEXT = torch.randint(100, (160,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_the_models(name: str) -> None:
    """Read in one and in parts, within and across blocks of keys; two texts of different lengths going on together."""
    model = build(SHAPES[name])
    runner, expected = make(model), whole(model, TEXT)
    told = {len(TEXT[:end]): runner.read(0, TEXT[start:end], start) for start, end in ((0, 5), (5, 6), (6, 150))}
    told[BLOCK] = runner.read(2, TEXT[:BLOCK], 0)
    long, short = runner.step([0, 2], [TEXT[150], TEXT[BLOCK]])
    told |= {151: long, BLOCK + 1: short, 152: runner.step([0], [TEXT[151]])[0]}
    for length, logits in told.items():
        torch.testing.assert_close(logits, expected[length - 1], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4"])
def test_a_texts_bits_depend_on_nothing_beside_it(name: str, weights: Format, threads: None) -> None:
    model = build(SHAPES[name])
    alone, together = make(model, 1, weights), make(model, 20, weights)
    torch.set_num_threads(1)
    alone.read(0, TEXT[:70], 0)
    expected = [alone.step([0], [token])[0] for token in TEXT[70:72]]
    torch.set_num_threads(2)
    for slot in range(20):
        together.read(slot, TEXT[slot:40], 0)
    together.read(11, TEXT[:33], 0)
    together.read(11, TEXT[33:70], 33)
    assert torch.equal(together.step([*range(20)], [TEXT[70]] * 20)[11], expected[0])
    assert torch.equal(together.step([3, 11, 4], [1, TEXT[71], 2])[1], expected[1])


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_fewer_bits_compute_what_their_values_say(name: str, weights: Format) -> None:
    """As a model in fp32 whose matrices hold the stored values; the embedding that is looked up is the given one."""
    model = build(replace(SHAPES[name], tied=False))
    runner = make(model, 1, weights)
    for parameter, matrix in model.named_parameters():
        if matrix.dim() == 2 and not parameter.startswith(("embedding", "position")):
            matrix.data = dequantize(*quantize(matrix, weights))
    torch.testing.assert_close(runner.read(0, TEXT[:90], 0), whole(model, TEXT[:90])[-1], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("weights", "share"), [("bf16", 0.02), ("int8", 0.05), ("int4", 0.5)])
def test_fewer_bits_change_logits_by_a_share_of_their_spread(weights: Format, share: float) -> None:
    model = build(GPT)
    expected = whole(model, TEXT[:90])[-1]
    error = make(model, 1, weights).read(0, TEXT[:90], 0) - expected
    assert 0 < error.square().mean().sqrt() < share * expected.std()


def test_greedy_texts_are_those_of_pytorch() -> None:
    model = build(SHAPES["qwen3"])
    prompts = [TEXT[:9], TEXT[20:50], TEXT[60:61]]
    runner = make(model)
    written = [[int(runner.read(slot, prompt, 0).argmax())] for slot, prompt in enumerate(prompts)]
    for _ in range(29):
        for text, logits in zip(written, runner.step([0, 1, 2], [text[-1] for text in written]), strict=True):
            text.append(int(logits.argmax()))
    assert written == decode_by_torch(model, prompts, Decoding(end=-1, most=30))


def test_a_copied_beginning_goes_on_as_if_read() -> None:
    model = build(LLAMA)
    runner = make(model)
    runner.read(1, TEXT[:50], 0)
    runner.copy(1, 2, 37)
    assert torch.equal(runner.read(2, TEXT[60:80], 37), runner.read(0, TEXT[:37] + TEXT[60:80], 0))
    torch.testing.assert_close(runner.step([1], [TEXT[50]])[0], whole(model, TEXT[:51])[-1], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("weights", ["fp32", "int4"])
def test_prompts_that_are_read_together_are_as_if_read_alone(weights: Format) -> None:
    """Within a block, over its end, and from where another reading ended; the next tokens, too."""
    model = build(LLAMA)
    runner, alone = make(model, 4, weights), make(model, 4, weights)
    for each in (runner, alone):
        each.read(2, TEXT[:30], 0)
    parts = [(0, TEXT[: BLOCK - 3], 0), (3, TEXT[5:6], 0), (2, TEXT[30:50], 30), (1, TEXT[7:90], 0)]
    assert torch.equal(runner.read_together(parts), torch.stack([alone.read(*part) for part in parts]))
    assert torch.equal(runner.step([0, 1, 2, 3], [9] * 4), alone.step([0, 1, 2, 3], [9] * 4))


def test_a_slot_forgets_what_another_text_left() -> None:
    """Also where that was not a number."""
    model = build(GPT)
    runner, expected = make(model), make(model).read(0, TEXT[:20], 0)
    model.embedding.weight.data[100] = torch.nan
    assert runner.read(0, [100] * 40, 0).isnan().all()
    assert torch.equal(runner.read(0, TEXT[:20], 0)[:100], expected[:100])


def test_what_the_library_does_not_compute_is_left_to_others() -> None:
    assert native_runner(build(replace(GPT, causal=False)), 1, 16) is None
    assert native_runner(build(replace(GPT, norm_first=False)), 1, 16) is None
    assert native_runner(build(replace(GPT, hidden=72)), 1, 16) is None
    assert native_runner(build(replace(GPT, hidden=48)), 1, 16, "int4") is None
    assert native_runner(build(GPT).bfloat16(), 1, 16) is None


def test_what_is_outside_its_room_is_refused() -> None:
    runner = make(build(GPT))
    assert native_runner(build(GPT), 1, 1000).capacity == GPT.context  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="room for 160 tokens"):
        runner.read(0, [*TEXT, 1], 0)
    with pytest.raises(ValueError, match="tokens are below 101"):
        runner.read(0, [101], 0)
    with pytest.raises(ValueError, match="from place 3 on"):
        runner.read(1, [1], 3)
    with pytest.raises(ValueError, match="slots below 3"):
        runner.step([-1], [1])
    runner.read(0, TEXT, 0)
    with pytest.raises(ValueError, match="room for 160 tokens"):
        runner.step([0], [1])
