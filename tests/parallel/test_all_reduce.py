"""Summed gradients: over any number of ranks, the same as one rank with all the data."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shoal.parallel.all_reduce import AllReduce
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from tests.ranks import alone, run_ranks


def small_model(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 2))


def gradients_of(world: World, rows: torch.Tensor, bucket_bytes: int, pieces: int) -> dict[str, object]:
    # another seed on every rank: attach must give all of them rank 0's weights
    model = small_model(seed=world.rank)
    sync = AllReduce(Wire(world), bucket_bytes)
    sync.attach(model)
    mine = rows[world.rank :: world.size]
    chunks = mine.chunk(pieces)
    for index, chunk in enumerate(chunks):
        sync.begin_backward(last=index == len(chunks) - 1)
        model(chunk).square().sum().backward()
    sync.before_step()
    result = {
        "gradients": [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None],
        "norm": sync.grad_norm(),
        "bytes": sync.wire.bytes_sent,
        "weights": [parameter.detach().clone() for parameter in model.parameters()],
    }
    sync.after_step()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())
    return result


def check_same_as_alone(size: int, bucket_bytes: int, pieces: int) -> None:
    rows = torch.randn(11, 5, generator=torch.Generator().manual_seed(3))
    reference = gradients_of(alone(), rows, 1 << 20, 1)
    for got in run_ranks(size, gradients_of, rows, bucket_bytes, pieces):
        torch.testing.assert_close(got["weights"], reference["weights"], rtol=0, atol=0)
        torch.testing.assert_close(got["gradients"], reference["gradients"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got["norm"], reference["norm"], rtol=1e-5, atol=0)


def test_two_ranks_with_uneven_rows_sum_to_what_one_rank_computes() -> None:
    check_same_as_alone(size=2, bucket_bytes=1 << 20, pieces=1)


def test_four_ranks_with_many_buckets_and_accumulation_sum_to_what_one_rank_computes() -> None:
    check_same_as_alone(size=4, bucket_bytes=40, pieces=2)


def unused_parameter(world: World) -> list[torch.Tensor]:
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    sync = AllReduce(Wire(world), 8)
    sync.attach(model)
    sync.begin_backward(last=True)
    model[world.rank](torch.ones(1, 2)).sum().backward()  # each rank uses another half
    sync.before_step()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_parameters_that_took_no_part_on_a_rank_still_meet() -> None:
    first, second = run_ranks(2, unused_parameter)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert all(gradient.any() for gradient in first)


def test_bytes_on_the_wire_are_those_of_the_ring() -> None:
    rows = torch.ones(4, 5)
    parameters = sum(parameter.numel() for parameter in small_model(0).parameters())
    for size in (2, 4):
        got = run_ranks(size, gradients_of, rows, 1 << 20, 1)
        weights_sent_by_rank_0 = parameters * 4
        ring = 2 * (parameters * 4) * (size - 1) // size
        assert [result["bytes"] for result in got] == [
            ring + (weights_sent_by_rank_0 if rank == 0 else 0) for rank in range(size)
        ]
    assert gradients_of(alone(), rows, 1 << 20, 1)["bytes"] == 0


@settings(max_examples=30, deadline=None)
@given(bucket_bytes=st.integers(1, 400), pieces=st.integers(1, 5))
def test_alone_gradients_are_plain_autograds_whatever_the_buckets(bucket_bytes: int, pieces: int) -> None:
    rows = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    model = small_model(0)
    model(rows).square().sum().backward()
    got = gradients_of(alone(), rows, bucket_bytes, pieces)
    torch.testing.assert_close(got["gradients"], [p.grad for p in model.parameters()], rtol=1e-5, atol=1e-6)


def test_scaling_and_norm_cover_every_gradient() -> None:
    model = small_model(0)
    sync = AllReduce(Wire(alone()), 64)
    sync.attach(model)
    sync.begin_backward(last=True)
    model(torch.ones(2, 5)).sum().backward()
    sync.before_step()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    torch.testing.assert_close(sync.grad_norm(), expected)
    sync.scale_grads(0.25)
    torch.testing.assert_close(sync.grad_norm(), expected * 0.25)
