"""One measurement of decode.py: texts that Shoal writes greedily, a step each time, and what fewer bits cost.

Prints a line of JSON. With `--text`, token ids of a corpus's shard, it also tells the loss on them, in steps as they are
written: so that weights in fewer bits are compared by what they do to a model and not by how fast they are wrong.
"""

import json
import resource
import time
from pathlib import Path

import numpy as np
import torch
import tyro
from torch.nn import functional

from shoal.core.model_directory import read_model_directory
from shoal.core.native.decode import Format
from shoal.models import hugging_face
from shoal.serve.native_runner import NativeRunner, native_runner

SLOTS, WINDOWS, LENGTH = 8, 32, 240
"""Texts that are read at once; all that a loss is told of; their tokens."""


def loss_of(runner: NativeRunner, shard: Path) -> float:
    """Nats a token of windows spread over the shard's token ids (uint16)."""
    ids = np.fromfile(shard, dtype="<u2").astype(np.int64)
    starts = np.linspace(0, len(ids) - LENGTH, WINDOWS).astype(np.int64)
    windows = torch.from_numpy(ids[starts[:, None] + np.arange(LENGTH)])
    told = []
    for tokens in windows.split(SLOTS):
        for slot, window in enumerate(tokens):
            runner.read(slot, window[:1].tolist(), 0)
        for place in range(1, LENGTH - 1):
            logits = runner.step([*range(SLOTS)], tokens[:, place].tolist())
            told.append(functional.cross_entropy(logits, tokens[:, place + 1]))
    return float(torch.stack(told).mean())


def main(
    model: Path, prompts: Path, batch: int, tokens: int, weights: Format = "fp32", threads: int = 2, text: Path | None = None
) -> None:
    """Measure.

    Args:
        model: A folder in the Hugging Face layout.
        prompts: JSON, a list of lists of tokens; the first `batch` are gone on with.
        batch: Texts that are written at once.
        tokens: How many each gets.
        weights: How they are stored.
        threads: That PyTorch, and the library, may use.
        text: A shard's token ids (uint16), to tell the loss on.
    """
    torch.set_num_threads(threads)
    asked = json.loads(prompts.read_text())[:batch]
    transformer = hugging_face.build(*read_model_directory(model)).eval()
    room = max(len(asked[0]) + tokens, LENGTH)
    runner = native_runner(transformer, max(batch, SLOTS if text else 0), room, weights)
    if runner is None:
        raise SystemExit(f"{model}: the library doesn't compute this model")
    slots = [*range(batch)]
    started = time.perf_counter()
    written = [[int(runner.read(slot, prompt, 0).argmax())] for slot, prompt in zip(slots, asked, strict=True)]
    read = time.perf_counter()
    seconds = []
    for _ in range(tokens - 1):
        before = time.perf_counter()
        chosen = runner.step(slots, [text[-1] for text in written]).argmax(1).tolist()
        for one, token in zip(written, chosen, strict=True):
            one.append(token)
        seconds.append(time.perf_counter() - before)
    result = {
        "step_seconds": seconds,
        "read_tokens_per_second": sum(map(len, asked)) / (read - started),
        "written": written,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    if text is not None:
        result["loss"] = loss_of(runner, text)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
