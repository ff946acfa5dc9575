"""Every division of the work is the same training: the reduced matrix; `shoal bench parity` is the whole one."""

from pathlib import Path

import pytest

from shoal.parallel.world import World
from shoal.train import parity
from tests.ranks import alone, run_ranks

CASES = {size: [case for case in parity.CASES if case.ranks == size and "compiled" not in case.name] for size in (1, 2, 4)}
FEW = ("replicate", "zero1", "zero3", "tensor 2", "zero3 over 2 × tensor 2, accumulating")


def traces(world: World, cases: list[parity.Case], folder: Path, preset: str) -> list[parity.Trace | None]:
    return [parity.trace(world, case, folder / str(number), preset) for number, case in enumerate(cases)]


def different(size: int, cases: list[parity.Case], folder: Path, preset: str) -> dict[str, parity.Difference]:
    """Those cases that are not the same training."""
    reference = parity.reference(preset)
    got = traces(alone(), cases, folder, preset) if size == 1 else run_ranks(size, traces, cases, folder, preset)[0]
    found = {case.name: parity.Difference.between(trace, reference) for case, trace in zip(cases, got, strict=True)}
    return {name: difference for name, difference in found.items() if not difference.fine}


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_division_trains_as_plain_fp64_does(size: int, tmp_path: Path) -> None:
    assert different(size, CASES[size], tmp_path, "qwen3-tiny") == {}


@pytest.mark.parametrize("size", [2, 4])
def test_biases_and_learned_positions_are_divided_right_too(size: int, tmp_path: Path) -> None:
    assert different(size, [case for case in CASES[size] if case.name in FEW], tmp_path, "gpt2-small") == {}


def test_a_wrong_training_is_seen(tmp_path: Path) -> None:
    wrong = parity.Case("another rate", 1, {"optimizer": {"beta2": 0.9501}})
    trace = parity.trace(alone(), wrong, tmp_path)
    assert trace is not None
    assert not parity.Difference.between(trace, parity.reference()).fine
