"""Every division of the work is the same training: the reduced matrix; `shoal bench parity` is the whole one."""

from pathlib import Path

import pytest

from shoal.parallel.world import World
from shoal.tasks import Task
from shoal.train import parity
from tests.ranks import alone, run_ranks
from tests.train.encoders import SHAPES, Hiding, with_shapes

CASES = {size: [case for case in parity.CASES if case.ranks == size and "compiled" not in case.name] for size in (1, 2, 4)}
WHOLE_MESH = "zero3 over 2 × tensor 2, accumulating"
FEW = ("replicate", "zero1", "zero3", "tensor 2", WHOLE_MESH)
"""Divisions in which other presets are tried than the one on which all are."""
SIZES = [
    (1, FEW),
    pytest.param(2, FEW, marks=pytest.mark.thorough),
    (4, (WHOLE_MESH,)),
    pytest.param(4, FEW, marks=pytest.mark.thorough),
]
"""Numbers of ranks, and which of the few: on four ranks the whole mesh alone, unless there is time."""
Jobs = list[tuple[str, parity.Case]]
"""Presets, and how their training is divided."""


def traces(world: World, jobs: Jobs, folder: Path, task: Task | None) -> list[parity.Trace | None]:
    with with_shapes:
        return [parity.trace(world, case, folder / str(number), preset, task) for number, (preset, case) in enumerate(jobs)]


def differences(size: int, jobs: Jobs, folder: Path, task: Task | None = None) -> dict[tuple[str, str], parity.Difference]:
    """Of each job to the plainest training, by its preset and its case's name."""
    with with_shapes:
        kinds = {(preset, case.optimizer) for preset, case in jobs}
        references = {(preset, kind): parity.reference(preset, task, kind) for preset, kind in kinds}
    got = traces(alone(), jobs, folder, task) if size == 1 else run_ranks(size, traces, jobs, folder, task)[0]
    return {
        (preset, case.name): parity.Difference.between(trace, references[preset, case.optimizer])
        for (preset, case), trace in zip(jobs, got, strict=True)
    }


def different(size: int, jobs: Jobs, folder: Path, task: Task | None = None) -> dict[tuple[str, str], parity.Difference]:
    """Those jobs that are not the same training."""
    return {name: difference for name, difference in differences(size, jobs, folder, task).items() if not difference.fine}


@pytest.mark.parametrize(("size", "few"), SIZES)
def test_every_division_trains_as_plain_fp64_does(size: int, few: tuple[str, ...], tmp_path: Path) -> None:
    biased = [("gpt2-small", case) for case in CASES[size] if case.name in few]  # and with learned positions
    assert different(size, [*(("qwen3-tiny", case) for case in CASES[size]), *biased], tmp_path) == {}


OF_ENCODERS = ("one rank, accumulating", "zero2, accumulating", "zero3, all recomputed")
MEETING_OTHERWISE = {
    "int8": (1e-3, {"codec": {"kind": "int8"}}),
    "zero1, int8": (1e-3, {"shard": "zero1", "codec": {"kind": "int8"}}),
    "zero3, int8": (1e-3, {"shard": "zero3", "codec": {"kind": "int8"}}),
    "local updates": (3e-2, {"sync": "local", "local": {"every": 4}}),
}
"""How near the losses are, and keys of `parallel`."""


@pytest.mark.parametrize(("size", "few"), SIZES)
def test_encoders_are_divided_right_too_with_heads_that_nothing_uses(
    size: int, few: tuple[str, ...], tmp_path: Path
) -> None:
    otherwise = [parity.Case(name, 2, {"parallel": keys}) for name, (_, keys) in MEETING_OTHERWISE.items()]
    cases = [case for case in CASES[size] if case.name in (*few, *OF_ENCODERS)] + (otherwise if size == 2 else [])
    presets = list(SHAPES)[: 2 if size == 2 else 1]
    found = differences(size, [(preset, case) for preset in presets for case in cases], tmp_path, Hiding())
    for (preset, name), difference in found.items():
        near, _ = MEETING_OTHERWISE.get(name, (0, {}))
        assert difference.loss < near or difference.fine, (preset, name, difference)


def test_a_wrong_training_is_seen(tmp_path: Path) -> None:
    wrong = parity.Case("another rate", 1, {"optimizer": {"beta2": 0.9501}})
    trace = parity.trace(alone(), wrong, tmp_path)
    assert trace is not None
    assert not parity.Difference.between(trace, parity.reference()).fine
