"""Every codec of the table: what decoding may err by, what feedback keeps, how many bytes; and sums over real ranks.

Each is held to the same tests, and must say what it promises in `PROMISES`. Native code and PyTorch's operations must give
the same bits, so what the one is shown to do, the other does.
"""

import itertools
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
from shoal.parallel.codecs.powersgd import Place, PowerSGD
from shoal.parallel.codecs.topk import split
from shoal.parallel.coded_sum import CodedSum
from shoal.parallel.mesh import Axis, make_mesh, own_channel
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from tests.ranks import alone, run_ranks

TINY = 2.0**-120
"""Where the steps of subnormal scales are."""
PROMISES: dict[str, tuple[int, int, Callable[[Tensor, Tensor], Tensor]]] = {
    # block, its bytes, and the largest error by values and their block's largest magnitude
    "bf16": (64, 128, lambda values, largest: values.abs() * 2**-8),
    "fp16": (256, 513, lambda values, largest: values.abs() * 2**-11 + largest * 2**-39),
    "int8": (128, 130, lambda values, largest: largest * 1.51 / 128),
    "int4": (64, 34, lambda values, largest: largest * 1.05 / 8),
    "topk": (4096, 116, lambda values, largest: largest * 1.01),
    "sign": (256, 34, lambda values, largest: largest * 1.01),
}
KINDS = [pytest.param(kind, id=kind) for kind in CODECS]
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


@pytest.mark.parametrize("kind", KINDS)
@EXAMPLES
@given(values=rows())
@example(values=torch.tensor([65504.0, 1e6, -3e5, 1e-8]))
def test_decoding_errs_by_no_more_than_is_promised(kind: str, values: Tensor) -> None:
    block, _, error = PROMISES[kind]
    codec = make(kind)
    assert codec.block == block
    got = decoded(codec, encoded(codec, values), len(values))
    assert ((got.double() - values).abs() <= error(values.double(), largest_of_block(values, block).double()) + TINY).all()


@pytest.mark.parametrize("kind", KINDS)
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
@pytest.mark.parametrize("kind", KINDS)
@EXAMPLES
@given(values=rows(), bad=st.sampled_from([0.0, math.nan, -math.inf]), keep=st.sampled_from([1e-4, 1 / 64, 0.1001, 1.0]))
@example(values=torch.full((4096,), -0.0), bad=0.0, keep=0.25)
@example(values=torch.full((4096,), 3.0), bad=0.0, keep=0.25)
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


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("kind", KINDS)
def test_whole_blocks_are_encoded_independently_of_their_neighbours(kind: str) -> None:
    codec = make(kind)
    values = torch.randn(5 * codec.block, generator=torch.Generator().manual_seed(1))
    pieces = [encoded(codec, piece) for piece in values.split(2 * codec.block)]
    assert torch.equal(torch.cat(pieces), encoded(codec, values))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [0, 1, 63, 4096])
def test_zeros_stay_zeros(kind: str, length: int) -> None:
    codec = make(kind)
    zeros = torch.zeros(length)
    payload, dropped = with_feedback(codec, zeros, zeros)
    assert torch.equal(decoded(codec, payload, length), zeros) and torch.equal(dropped, zeros)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [1.0, -3.0, 1e-30, -1e30])
def test_a_value_alone_is_right_to_bf16s_rounding(kind: str, value: float) -> None:
    codec = make(kind)
    alone_it = torch.tensor([value])
    torch.testing.assert_close(decoded(codec, encoded(codec, alone_it), 1), alone_it, rtol=2**-8, atol=0)


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("kind", KINDS)
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


# ── over ranks ──────────────────────────────────────────────────────────────────────────────────────────────────────────

LENGTH = 2 * 4096 * 3
SHAPES = {"bias": (40,), "wide": (24, 48), "scale": (), "tall": (64, 3, 4), "twin": (24, 48), "small": (3, 5)}


def places_of(shapes: dict[str, tuple[int, ...]]) -> list[Place]:
    """One after the other, five numbers apart that belong to none."""
    lengths = [math.prod(shape) + 5 for shape in shapes.values()]
    offsets = itertools.accumulate([3, *lengths[:-1]])
    return [Place(name, shape, offset) for (name, shape), offset in zip(shapes.items(), offsets, strict=True)]


PLACES = places_of(SHAPES)
FLAT = PLACES[-1].offset + 15 + 4


def row_of(rank: int, length: int, turn: int = 0) -> Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(100 * turn + rank))


def low_rank(rank: int) -> Tensor:
    """Matrices that are all of rank 2."""
    flat = row_of(rank, FLAT)
    for place in PLACES:
        if len(place.shape) > 1:
            rows, columns = place.shape[0], math.prod(place.shape[1:])
            thin = row_of(9, rows * 2).view(rows, 2) @ row_of(rank, 2 * columns).view(2, columns)
            flat[place.offset : place.offset + rows * columns] = thin.flatten()
    return flat


def do_sum(way: CodedSum | PowerSGD, values: Tensor, dropped: Tensor) -> dict[str, Any]:
    """A sum in the background, and what it sent."""
    values, dropped, sent = values.clone(), dropped.clone(), way.wire.bytes_sent
    way.wire.finish(way.start(values, dropped))
    return {"sum": values, "dropped": dropped, "sent": way.wire.bytes_sent - sent, "foretold": way.wire_bytes(len(values))}


def all_sums(world: World) -> dict[str, Any]:
    """Whatever the tests below look at, from one start of the ranks."""
    wire, axis = Wire(world), own_channel(make_mesh(world, (world.size, 1, 1)).data, 60)
    got: dict[str, Any] = {}
    for kind in CODECS:
        for feedback in (True, False):
            way = CodedSum(wire, axis, make(kind), feedback, decay=0.5)
            assert LENGTH % way.multiple == 0
            got[f"{kind}/{feedback}"] = do_sum(way, row_of(world.rank, LENGTH), row_of(world.rank, LENGTH, 1))

    def powersgd(rank: int, **keys: Any) -> PowerSGD:
        return PowerSGD(wire, axis, PLACES, rank, **keys)

    nothing, mine = torch.zeros(FLAT), row_of(world.rank, FLAT)
    for feedback in (True, False):
        got[f"powersgd/{feedback}"] = do_sum(powersgd(2, feedback=feedback, decay=0.5), mine, row_of(world.rank, FLAT, 1))
    got["full"] = do_sum(powersgd(24), mine, nothing)
    got["low"] = do_sum(powersgd(2), low_rank(world.rank), nothing)
    warm = powersgd(2, feedback=False)
    got["warm"] = [do_sum(warm, mine, nothing) for _ in range(30)]
    again = powersgd(2, feedback=False, seed=5)
    again.load_state_dict({name: q.clone() for name, q in warm.state_dict().items()})
    got["resumed"] = [do_sum(way, low_rank(world.rank), nothing)["sum"] for way in (warm, again)]
    bad, before = mine.clone(), row_of(world.rank, FLAT, 1)
    if world.rank == 0:
        bad[PLACES[1].offset + 7] = math.nan
    spoilt = powersgd(2)
    warmth = {name: q.clone() for name, q in spoilt.state_dict().items()}
    got["bad"] = do_sum(spoilt, bad, before) | {"before": before, "warm before": warmth, "warm": spoilt.state_dict()}
    return got


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_ranks(2, all_sums)


WAYS = [*KINDS, pytest.param("powersgd", id="powersgd")]


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("feedback", [True, False])
def test_all_ranks_have_the_same_sum_and_sent_what_was_foretold(ranks: Any, kind: str, feedback: bool) -> None:
    first, second = (result[f"{kind}/{feedback}"] for result in ranks)
    assert same_bits(first["sum"], second["sum"])
    assert first["sent"] == first["foretold"] == second["sent"]


@pytest.mark.parametrize("kind", WAYS)
def test_a_sum_and_what_all_ranks_dropped_of_it_are_the_true_sum(ranks: Any, kind: str) -> None:
    results = [result[f"{kind}/True"] for result in ranks]
    length = len(results[0]["sum"])
    wanted = sum(row_of(rank, length).double() + 0.5 * row_of(rank, length, 1).double() for rank in range(2))
    got = results[0]["sum"].double() + results[0]["dropped"] + results[1]["dropped"]
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5 if kind == "powersgd" else 2e-6)
    assert not torch.allclose(results[0]["sum"].double(), wanted, rtol=0, atol=1e-4)  # something was dropped


@pytest.mark.parametrize("kind", WAYS)
def test_without_feedback_nothing_is_kept(ranks: Any, kind: str) -> None:
    for rank, result in enumerate(ranks):
        kept = result[f"{kind}/False"]["dropped"]
        assert same_bits(kept, row_of(rank, len(kept), 1))


def test_powersgd_sends_thin_matrices_and_the_rest_plain(ranks: Any) -> None:
    matrices = [(24, 48), (64, 12), (24, 48)]
    thin = sum(2 * (rows + columns) for rows, columns in matrices)
    plain = FLAT - sum(rows * columns for rows, columns in matrices)
    assert ranks[0]["powersgd/True"]["sent"] == 4 * (thin + plain)
    assert ranks[0]["full"]["sent"] == 4 * FLAT


def test_powersgd_at_full_rank_is_the_plain_sum(ranks: Any) -> None:
    torch.testing.assert_close(ranks[0]["full"]["sum"], row_of(0, FLAT) + row_of(1, FLAT))


def test_powersgd_sums_matrices_of_its_rank_exactly(ranks: Any) -> None:
    torch.testing.assert_close(ranks[0]["low"]["sum"], low_rank(0) + low_rank(1), rtol=1e-4, atol=1e-4)
    assert not ranks[0]["low"]["dropped"][: PLACES[1].offset].any()


def test_warm_starts_bring_powersgd_to_the_best_approximation(ranks: Any) -> None:
    true = row_of(0, FLAT) + row_of(1, FLAT)
    for place in (PLACES[1], PLACES[3], PLACES[4]):
        where, shape = slice(place.offset, place.offset + math.prod(place.shape)), (place.shape[0], -1)
        best = torch.linalg.svdvals(true[where].view(shape))[2:].square().sum().sqrt()
        first, last = ((ranks[0]["warm"][turn]["sum"] - true)[where].norm() for turn in (0, -1))
        assert last <= 1.01 * best < first


def test_powersgd_goes_on_bitwise_from_its_state(ranks: Any) -> None:
    went_on, resumed = ranks[1]["resumed"]
    assert same_bits(went_on, resumed)


def test_what_is_not_finite_on_one_rank_all_see_and_powersgd_forgets_nothing(ranks: Any) -> None:
    place = PLACES[1]
    where = slice(place.offset, place.offset + math.prod(place.shape))
    for result in ranks:
        bad = result["bad"]
        assert not bad["sum"][where].isfinite().any() and bad["sum"][where.stop :].isfinite().all()
        assert same_bits(bad["dropped"][where], bad["before"][where])
        assert same_bits(bad["warm"]["wide"], bad["warm before"]["wide"])
        assert not torch.equal(bad["warm"]["twin"], bad["warm before"]["twin"])
        assert bad["dropped"].isfinite().all()


def test_alone_there_is_nothing_to_sum() -> None:
    wire = Wire(alone())
    for way in (CodedSum(wire, Axis(), make("int4")), PowerSGD(wire, Axis(), PLACES, 2)):
        result = do_sum(way, row_of(0, FLAT), torch.zeros(FLAT))
        assert same_bits(result["sum"], row_of(0, FLAT)) and result["sent"] == result["foretold"] == 0
