"""Every codec of the table: what decoding may err by, what feedback keeps, how many bytes.

Each is held to the same tests, and must say what it promises in `PROMISES`. Native code and PyTorch's operations must give
the same bits, so what the one is shown to do, the other does.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args, get_type_hints

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from shoal.core import native, recipe
from shoal.parallel.codecs import CODECS, blocks
from shoal.parallel.codecs.codec import Codec, encode_with_feedback
from shoal.parallel.codecs.topk import split

TINY = 2.0**-120
"""Where the steps of subnormal scales are."""
PROMISES: dict[str, tuple[int, int, Callable[[Tensor, Tensor], Tensor]]] = {
    # block, its bytes, and the largest error by values and their block's largest magnitude
    "bf16": (64, 128, lambda values, largest: values.abs() * 2**-8),
    "fp16": (256, 513, lambda values, largest: values.abs() * 2**-11 + largest * 2**-39),
    "int8": (128, 130, lambda values, largest: largest * 1.51 / 128),
    "int4": (64, 34, lambda values, largest: largest * 1.05 / 8),
    "two_bit": (256, 68, lambda values, largest: largest * 1.01),
    "topk": (4096, 116, lambda values, largest: largest * 1.01),
    "sign": (256, 34, lambda values, largest: largest * 1.01),
}
EXAMPLES = settings(max_examples=15, deadline=None)
LENGTHS = st.one_of(st.integers(0, 300), st.sampled_from([4095, 4096, 4097, 9000]))


def make(kind: str, **keys: Any) -> Codec:
    return CODECS[kind](recipe.Codec(kind=kind, **keys))


@contextmanager
def in_torch() -> Iterator[None]:
    """Without native code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "available", lambda: False)
        yield


@st.composite
def rows(draw: st.DrawFn) -> Tensor:
    """Values of all sizes and shapes: equal scales and changing ones, zeros between, repeated ones, subnormal ones."""
    length, power, spread = draw(LENGTHS), draw(st.integers(-140, 110)), draw(st.sampled_from([0.0, 1.0, 8.0]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    values = torch.randn(length, generator=random) * (spread * torch.randn(length, generator=random)).exp2()
    if draw(st.booleans()):
        values = values.round()  # many are equal, many are zero, some −0
    values[torch.rand(length, generator=random) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = 0
    return (values.double() * 2.0**power).float().clamp(-(2.0**120), 2.0**120)


def largest_of_block(values: Tensor, block: int) -> Tensor:
    """The largest magnitude of each value's block [n]."""
    padded = torch.nn.functional.pad(values.abs(), (0, -len(values) % block)).view(-1, block)
    return padded.amax(1).repeat_interleave(block)[: len(values)]


def encoded(codec: Codec, values: Tensor) -> Tensor:
    payload = torch.empty(codec.nbytes(len(values)), dtype=torch.uint8)
    codec.encode(values, payload)
    return payload


def decoded(codec: Codec, payload: Tensor, length: int) -> Tensor:
    values = torch.full((length,), math.nan)
    codec.decode(payload, values)
    return values


def with_feedback(codec: Codec, values: Tensor, dropped: Tensor, decay: float = 1.0) -> tuple[Tensor, Tensor]:
    """The payload, and what is dropped now; both given stay as they are."""
    payload, kept = torch.empty(codec.nbytes(len(values)), dtype=torch.uint8), dropped.clone()
    encode_with_feedback(codec, values.clone(), kept, payload, decay)
    return payload, kept


def same_bits(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.view(torch.uint8), second.view(torch.uint8))


def test_what_a_recipe_may_name_is_what_is_tested() -> None:
    kinds = set(get_args(get_type_hints(recipe.Codec)["kind"]))
    assert kinds - {"none", "powersgd"} == set(CODECS) == set(PROMISES)


@pytest.mark.parametrize("kind", list(CODECS))
@EXAMPLES
@given(values=rows())
@example(values=torch.tensor([65504.0, 1e6, -3e5, 1e-8]))
def test_decoding_errs_by_no_more_than_is_promised(kind: str, values: Tensor) -> None:
    block, _, error = PROMISES[kind]
    codec = make(kind)
    assert codec.block == block
    got = decoded(codec, encoded(codec, values), len(values))
    assert ((got.double() - values).abs() <= error(values.double(), largest_of_block(values, block).double()) + TINY).all()


@pytest.mark.parametrize("kind", list(CODECS))
@EXAMPLES
@given(values=rows(), decay=st.sampled_from([1.0, 0.95, 0.0]), seed=st.integers(0, 1 << 30))
def test_feedback_keeps_what_decoding_lacks(kind: str, values: Tensor, decay: float, seed: int) -> None:
    codec = make(kind)
    before = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))]
    payload, after = with_feedback(codec, values, before, decay)
    wanted = values + before * decay
    lacking = (wanted.double() - decoded(codec, payload, len(values)) - after).abs()
    assert (lacking <= after.abs() * 2**-24 + 2.0**-149).all()  # one rounding
    assert same_bits(payload, encoded(codec, wanted))


@pytest.mark.skipif(not native.available(), reason="no C++ compiler")
@pytest.mark.parametrize("kind", list(CODECS))
@EXAMPLES
@given(values=rows(), bad=st.sampled_from([0.0, math.nan, -math.inf]), keep=st.sampled_from([1e-4, 1 / 64, 0.1001, 1.0]))
@example(values=torch.full((4096,), -0.0), bad=0.0, keep=0.25)
@example(values=torch.full((4096,), 3.0), bad=0.0, keep=0.25)
@example(values=torch.full((300,), 3e36), bad=0.0, keep=0.25)  # whose sums are not finite
def test_native_code_gives_the_bits_of_torch(kind: str, values: Tensor, bad: float, keep: float) -> None:
    codec = make(kind, keep=keep)
    values = values.clone()
    values[len(values) // 2 :][:1] = bad
    before = values.flip(0).nan_to_num(0, 0, 0) / 3

    def results() -> list[Tensor]:
        payload = encoded(codec, values)
        total = before.clone()
        codec.decode(payload, total, add=True)
        return [payload, decoded(codec, payload, len(values)), total, *with_feedback(codec, values, before, 0.95)]

    ours = results()
    with in_torch():
        theirs = results()
    if bad:  # not-a-numbers have many bits, and all mean the same
        ours, theirs = ([row.nan_to_num(7) for row in (*lists[1:3], lists[4])] for lists in (ours, theirs))
    assert all(same_bits(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind", list(CODECS))
@EXAMPLES
@given(values=rows())
def test_payloads_have_just_the_bytes_that_were_counted(kind: str, values: Tensor) -> None:
    codec = make(kind)
    block, record, _ = PROMISES[kind]
    nbytes = codec.nbytes(len(values))
    assert nbytes == math.ceil(len(values) / block) * record
    with_edges = [torch.full((nbytes + 64,), filling, dtype=torch.uint8) for filling in (0x55, 0xAA)]
    for row in with_edges:
        codec.encode(values, row[32:-32])
    first, second = with_edges
    assert torch.equal(first[32:-32], second[32:-32])  # all is written
    assert (first[:32] == 0x55).all() and (second[-32:] == 0xAA).all()  # and nothing else


@pytest.mark.parametrize("kind", list(CODECS))
def test_whole_blocks_are_encoded_independently_of_their_neighbours(kind: str) -> None:
    codec = make(kind)
    values = torch.randn(5 * codec.block, generator=torch.Generator().manual_seed(1))
    pieces = [encoded(codec, piece) for piece in values.split(2 * codec.block)]
    assert torch.equal(torch.cat(pieces), encoded(codec, values))


@pytest.mark.parametrize("kind", list(CODECS))
@pytest.mark.parametrize("length", [0, 1, 63, 4096])
def test_zeros_stay_zeros(kind: str, length: int) -> None:
    codec = make(kind)
    zeros = torch.zeros(length)
    payload, dropped = with_feedback(codec, zeros, zeros)
    assert torch.equal(decoded(codec, payload, length), zeros) and torch.equal(dropped, zeros)


@pytest.mark.parametrize("kind", list(CODECS))
@pytest.mark.parametrize("value", [1.0, -3.0, 1e-30, -1e30])
def test_a_value_alone_is_right_to_bf16s_rounding(kind: str, value: float) -> None:
    codec = make(kind)
    alone_it = torch.tensor([value])
    torch.testing.assert_close(decoded(codec, encoded(codec, alone_it), 1), alone_it, rtol=2**-8, atol=0)


@pytest.mark.parametrize("kind", list(CODECS))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("natively", [True, False])
def test_what_is_not_finite_is_seen_by_whoever_decodes_and_spoils_no_feedback(kind: str, bad: float, natively: bool) -> None:
    codec = make(kind)
    block = codec.block
    random = torch.Generator().manual_seed(2)
    values, before = torch.randn(3 * block, generator=random), torch.randn(3 * block, generator=random)
    good = with_feedback(codec, values, before)
    values[block + 5] = bad
    with pytest.MonkeyPatch.context() if natively else in_torch():
        payload, after = with_feedback(codec, values, before)
        got = decoded(codec, payload, len(values))
    where = slice(block + 5, block + 6) if kind == "bf16" else slice(block, 2 * block)
    assert not got[where].isfinite().any()
    assert same_bits(after[where], before[where])
    others = torch.ones(len(values), dtype=torch.bool)
    others[where] = False
    assert same_bits(got[others], decoded(codec, good[0], len(values))[others])
    assert same_bits(after[others], good[1][others])


@pytest.mark.parametrize("kind", list(CODECS))
def test_other_than_contiguous_fp32_is_refused(kind: str) -> None:
    codec = make(kind)
    length = 2 * codec.block
    values, payload = torch.zeros(length), torch.empty(codec.nbytes(length), dtype=torch.uint8)
    unfit = [values.bfloat16(), torch.zeros(2 * length)[::2], values.view(2, -1), values.double()]
    for tensor in unfit:
        with pytest.raises(ValueError, match="contiguous"):
            codec.encode(tensor, payload)
        with pytest.raises(ValueError, match="contiguous"):
            codec.decode(payload, tensor)
        with pytest.raises(ValueError, match="contiguous"):
            encode_with_feedback(codec, values, tensor, payload)
    for bytes_ in (payload[1:], payload.view(torch.int8), payload.repeat(2)[::2]):
        with pytest.raises(ValueError, match="payload"):
            codec.encode(values, bytes_)


@pytest.mark.parametrize("kind", list(CODECS))
def test_tensors_without_values_have_the_same_sizes(kind: str) -> None:
    codec = make(kind)
    with FakeTensorMode():
        values = torch.empty(2 * codec.block + 1)
        payload = encoded(codec, values)
        encode_with_feedback(codec, values, torch.zeros_like(values), payload)
        codec.decode(payload, values, add=True)
    assert len(payload) == codec.nbytes(len(values))


@EXAMPLES
@given(values=rows().filter(len), keep=st.sampled_from([1 / 4096, 1 / 64, 1 / 10]))
def test_top_k_keeps_the_largest(values: Tensor, keep: float) -> None:
    codec = make("topk", keep=keep)
    count = round(4096 * keep)
    assert codec.nbytes(4096) == 4 + math.ceil(count * 12 / 8) + math.ceil(count * 2 / 8)
    magnitudes, got = values.double().abs(), decoded(codec, encoded(codec, values), len(values))
    for chunk, kept in zip(magnitudes.split(4096), got.split(4096), strict=True):
        assert kept.count_nonzero() <= count
        assert (chunk[kept == 0] <= chunk.sort(descending=True).values[:count][-1] + TINY).all()
        assert len(kept.abs().unique()) <= 3


@EXAMPLES
@given(st.lists(st.floats(0, 100, width=32), min_size=2, max_size=12))
def test_the_two_magnitudes_of_top_k_are_those_of_least_squares(magnitudes: list[float]) -> None:
    row = torch.tensor([magnitudes])
    high, levels = split(row)
    error = (torch.where(high, levels[:, 1:], levels[:, :1]).double() - row).square().sum().item()
    ordered = row.double().sort().values[0]
    errors = [
        sum(float((part - part.mean()).square().sum()) for part in (ordered[:place], ordered[place:]))
        for place in range(1, len(magnitudes))
    ]
    assert error <= min(errors) + 1e-6 * float(ordered.square().sum())


def test_sign_has_the_scale_of_least_squares() -> None:
    values = torch.randn(1024, generator=torch.Generator().manual_seed(4))
    got = decoded(make("sign"), encoded(make("sign"), values), 1024)
    for block, row in zip(values.split(256), got.split(256), strict=True):
        assert same_bits(row.sign(), block.sign())
        torch.testing.assert_close(row.abs(), block.abs().mean().expand(256), rtol=2**-8, atol=0)


def test_two_bits_have_the_means_of_small_and_large_values_and_near_the_least_error() -> None:
    values = torch.randn(1024, generator=torch.Generator().manual_seed(5))
    got = decoded(make("two_bit"), encoded(make("two_bit"), values), 1024)
    for block, row in zip(values.split(256), got.split(256), strict=True):
        assert same_bits(row.sign(), block.sign())
        high = block.abs() > 1.25 * block.abs().mean()
        for part in (high, ~high):
            torch.testing.assert_close(row[part].abs(), block[part].abs().mean().expand(int(part.sum())), rtol=2**-8, atol=0)
    # Lloyd's quantizer of four levels leaves 0.1175 of normal values' square
    assert float((got - values).square().sum() / values.square().sum()) == pytest.approx(0.1175, rel=0.1)
