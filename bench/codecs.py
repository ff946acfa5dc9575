"""What a codec costs one core: fp32 encoded and decoded a second, beside copying them in memory.

The values are a bucket of gradients, larger than the caches that a core has to itself. A codec pays while encoding and
decoding take less time than the bytes that it saves.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
import tyro
from torch import Tensor

from report import Result, Rounds, median, publish, shown, take_turns
from shoal.core import native, recipe
from shoal.parallel.codecs import CODECS, blocks
from shoal.parallel.codecs.codec import encode_with_feedback
from shoal.parallel.codecs.powersgd import PowerSGD
from shoal.parallel.feedback import Place
from shoal.parallel.mesh import Axis
from shoal.parallel.wire import Wire
from shoal.parallel.world import World

COLUMNS = ["GB/s of fp32", "bits a value", "error", "encode", "with feedback", "decode", "add decoded"]
SHAPE = (384, 1536)
KEYS = ("encode", "feedback", "decode", "add")


def bandwidth(values: Tensor, work: Callable[[], object], seconds: float) -> float:
    """GB of fp32 that the work gets through in a second: its median over so many seconds."""
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return values.nbytes / sorted(times)[len(times) // 2] / 1e9


def measure(kind: str, natively: bool, length: int, seconds: float, round_number: int) -> Result:
    """One codec on one thread, in native code or in PyTorch's operations."""
    torch.set_num_threads(1)
    values = gradients(length, round_number)
    codec, dropped, result = CODECS[kind](recipe.Codec(kind=kind)), torch.zeros_like(values), torch.empty_like(values)
    payload = torch.empty(codec.nbytes(length), dtype=torch.uint8)
    blocks.available = native.available if natively else lambda: False
    codec.encode(values, payload)
    codec.decode(payload, result)
    error = float((result - values).norm() / values.norm())
    spent = values.clone()  # passes of PyTorch overwrite it
    works = (
        lambda: codec.encode(values, payload),
        lambda: encode_with_feedback(codec, spent, dropped, payload),
        lambda: codec.decode(payload, result),
        lambda: codec.decode(payload, result, add=True),
    )
    speeds = {key: bandwidth(values, work, seconds) for key, work in zip(KEYS, works, strict=True)}
    return {"bits": 8 * len(payload) / length, "error": error, **speeds}


def powersgd(rank: int, length: int, seconds: float, round_number: int) -> Result:
    """Its two messages and what follows from them, of matrices as a small model has, alone."""
    torch.set_num_threads(1)
    rows, columns = SHAPE
    values, count = gradients(length, round_number), length // (rows * columns)
    places = [Place(str(number), SHAPE, number * rows * columns) for number in range(count)]
    way = PowerSGD(Wire(World()), Axis(), places, rank)
    result, dropped = values.clone(), torch.zeros_like(values)
    list(way.sum(result, dropped))
    error = float((result - values).norm() / values.norm())
    numbers = way.p_length + way.q_length + length - count * rows * columns
    return {
        "bits": 32 * numbers / length,
        "error": error,
        "feedback": bandwidth(values, lambda: list(way.sum(result, dropped)), seconds),
    }


def gradients(length: int, seed: int) -> Tensor:
    """Normal values whose scale changes from row to row."""
    random = torch.Generator().manual_seed(seed)
    scales = torch.randn(length // 64, 1, generator=random).exp()
    return (torch.randn(length // 64, 64, generator=random) * scales).flatten()


def copying(length: int, seconds: float, round_number: int) -> Result:
    """What memory gives: reading and writing each number once."""
    torch.set_num_threads(1)
    values, result = torch.full((length,), float(round_number)), torch.zeros(length)
    return {"copy": bandwidth(values, lambda: result.copy_(values), seconds)}


def row(rounds: Rounds, name: str) -> list[str]:
    """A codec's medians."""
    results = rounds[name]
    speeds = [shown(median(results, key), "{:.1f}") for key in KEYS]
    return [name, f"{median(results, 'bits'):.3f}", f"{median(results, 'error'):.2%}", *speeds]


def main(rounds: int = 5, length: int = 1 << 23, seconds: float = 0.3) -> None:
    """Measure and write bench/results/codecs.json and codecs.md.

    Args:
        rounds: How often each takes its turn.
        length: Numbers at a time, a multiple of 4,096.
        seconds: For each figure of a round.
    """
    if not native.available():
        raise SystemExit(f"nothing to compare: {native.load()[1]}")
    contenders = {"memory copy": partial(copying, length, seconds)}
    contenders |= {kind: partial(measure, kind, True, length, seconds) for kind in CODECS}
    contenders |= {
        f"{kind}, without a compiler": partial(measure, kind, False, length, seconds) for kind in ("int8", "int4")
    }
    contenders["powersgd, rank 4"] = partial(powersgd, 4, length, seconds)
    found = take_turns(contenders, rounds)
    copied = f"{median(found['memory copy'], 'copy'):.1f}"
    rows = [
        ["memory copy", "32", "0%", copied, "–", copied, "–"],
        *(row(found, name) for name in found if name != "memory copy"),
    ]
    notes = [
        f"One thread, {length * 4 / 1e6:.0f} MB of fp32, normal values whose scale changes every 64; "
        f"medians over {rounds} rounds.",
        "Error: Euclidean norm of what one encoding loses, over that of the values; feedback sends it the next time.",
        "top-k keeps 1/64 of the values. PowerSGD's figure is all that a rank computes for a sum, encoding and decoding.",
    ]
    publish("codecs", "Codecs on one core", COLUMNS, rows, notes, found)


if __name__ == "__main__":
    tyro.cli(main)
