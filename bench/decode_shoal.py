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

SLOTS, LENGTH = 8, 240
"""Texts that a loss is told of, and their tokens."""


def loss_of(runner: NativeRunner, tokens: torch.Tensor) -> float:
    """Nats a token of the tokens int64 [SLOTS, LENGTH], each row a text."""
    told = []
    for slot, row in enumerate(tokens):
        runner.read(slot, row[:1].tolist(), 0)
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
        ids = torch.from_numpy(np.fromfile(text, dtype="<u2", count=SLOTS * LENGTH).astype(np.int64))
        result["loss"] = loss_of(runner, ids.view(SLOTS, LENGTH))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
