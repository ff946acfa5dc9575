"""Random streams depend on their names, and on nothing that happened before."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.seeds import derive_seed, generator

names = st.tuples(st.integers(0, 2**64), st.text(max_size=8), st.lists(st.integers(0, 10**9), max_size=3))


@given(names)
def test_a_seed_has_63_bits_and_depends_on_its_name_alone(name: tuple[int, str, list[int]]) -> None:
    seed, purpose, numbers = name
    assert derive_seed(seed, purpose, *numbers) == derive_seed(seed, purpose, *numbers)
    assert 0 <= derive_seed(seed, purpose, *numbers) < 2**63


def test_different_names_give_different_seeds() -> None:
    seeds = {
        derive_seed(seed, purpose, *numbers)
        for seed in range(20)
        for purpose in ("weights", "order", "dropout")
        for numbers in ((), *((rank, step) for rank in range(5) for step in range(20)))
    }
    assert len(seeds) == 20 * 3 * 101


def test_a_seed_is_the_same_in_every_release() -> None:
    assert derive_seed(1, "weights") == 3400473734912607075


def test_a_generator_repeats_its_stream_whatever_others_draw() -> None:
    first = torch.rand(5, generator=generator(1, "dropout", 0, 7))
    torch.rand(3)
    torch.rand(3, generator=generator(1, "weights"))
    assert torch.equal(first, torch.rand(5, generator=generator(1, "dropout", 0, 7)))
    assert not torch.equal(first, torch.rand(5, generator=generator(1, "dropout", 0, 8)))
