"""What every peer shares, so that only the trainer differs: the model's size, the windows read, and how time is told.

A peer reads the first `steps × batch` windows of `context + 1` tokens of the corpus, in one seeded random order, and
prints one JSON object as its last line. The time of a step runs from the end of one optimizer step to the end of the
next, reading the batch included; the first one is told from the start of the process, imports and compilation included.
Tokens/s is that of the median step after the warm-up, since a mean would carry the noise of a shared machine.
Linux only: process times come from /proc.
"""

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SEED = 1337
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
GRADIENT_CLIP = 1.0


@dataclass(frozen=True)
class Settings:
    """One measurement; each field is a command-line option of every peer. `batch` counts sequences over all ranks."""

    corpus: Path
    layers: int = 6
    dim: int = 384
    heads: int = 6
    vocabulary: int = 8192
    context: int = 256
    batch: int = 16
    steps: int = 30
    warmup: int = 5
    threads: int = 2
    learning_rate: float = 6e-4
    compile: bool = False
    stage: int = 0  # DeepSpeed's
    packed: bool = False  # of masked pre-training: rows without padding
    device: str = "cpu"
    precision: str = "fp32"  # or bf16, by autocast

    @classmethod
    def from_command_line(cls, description: str, devices: tuple[str, ...] = ("cpu",)) -> "Settings":
        """Parses the command line, and seeds and sizes PyTorch by it; `devices`: those that the peer can compute on."""
        parser = argparse.ArgumentParser(description=description.splitlines()[0])
        for option in fields(cls):
            name = "--" + option.name.replace("_", "-")
            if option.type is bool:
                parser.add_argument(name, action="store_true")
            else:
                parser.add_argument(name, type=option.type, default=option.default, required=option.name == "corpus")
        settings = cls(**vars(parser.parse_args()))
        if settings.device not in devices:
            parser.error(f"--device is {settings.device}; accepted: {', '.join(devices)}")
        if settings.warmup >= settings.steps:
            parser.error("--warmup must be less than --steps")
        torch.set_num_threads(settings.threads)
        torch.manual_seed(SEED)
        return settings


def read_windows(settings: Settings) -> Tensor:
    """The run's tokens as int64 [steps × batch, context + 1], shuffled. Exits if the corpus holds too few."""
    count = settings.steps * settings.batch
    missing = count * (settings.context + 1)
    pieces = []
    for path in sorted(settings.corpus.glob("train-*.bin")):
        pieces.append(np.fromfile(path, dtype="<u2", count=missing))
        missing -= len(pieces[-1])
        if not missing:
            break
    if missing:
        raise SystemExit(f"{settings.corpus}/train-*.bin: {missing:,} tokens too few for {settings.steps} steps")
    windows = np.concatenate(pieces).reshape(count, settings.context + 1)
    order = np.random.default_rng(SEED).permutation(count)
    return torch.from_numpy(windows[order].astype(np.int64))


def batches(settings: Settings, rank: int = 0, world_size: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of every step, int64 [batch / world size, context] each."""
    for windows in read_windows(settings).split(settings.batch):
        own = windows[rank::world_size]
        yield own[:, :-1], own[:, 1:]


def process_seconds() -> float:
    """Seconds since the kernel started this process."""
    started_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")


@dataclass
class Clock:
    """Ticks at the end of every optimizer step."""

    step_seconds: list[float] = field(default_factory=list)
    first_step_seconds: float = 0.0
    last_tick: float = field(default_factory=time.perf_counter)

    def tick(self) -> None:
        now = time.perf_counter()
        self.step_seconds.append(now - self.last_tick)
        self.last_tick = now
        if len(self.step_seconds) == 1:
            self.first_step_seconds = process_seconds()


def peak_memory_bytes(device: str) -> int:
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return torch.cuda.max_memory_allocated()


def print_result(peer: str, settings: Settings, clock: Clock, losses: list[float], parameters: int) -> None:
    """Prints the measurement as one line of JSON. Peak memory is this process's, on a GPU its tensors'."""
    median_step = statistics.median(clock.step_seconds[settings.warmup :])
    result = {
        "peer": peer,
        "tokens_per_second": settings.batch * settings.context / median_step,
        "step_seconds": clock.step_seconds,
        "first_step_seconds": clock.first_step_seconds,
        "peak_memory_bytes": peak_memory_bytes(settings.device),
        "losses": [losses[0], losses[-1]],
        "threads": settings.threads,
        "parameters": parameters,
    }
    print(json.dumps(result), flush=True)
