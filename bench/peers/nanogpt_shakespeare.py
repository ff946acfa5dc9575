"""nanoGPT's documented CPU recipe for tinyshakespeare, to tell how long it takes to reach a validation loss.

From nanoGPT's README, "I only have a macbook": characters, 4 layers of width 128, context 64, batch 12, 2000 steps,
no dropout; the rest from its `config/train_shakespeare_char.py`. Two departures, neither to its disadvantage: GELU is
the tanh form, and the loss is that of the whole validation split where nanoGPT samples 20 batches of it. Evaluation is
taken off the clock, so the curve is what an oracle that stops at the right step would need.
"""

import argparse
import json
import math
import resource
import time
from pathlib import Path

import torch
from harness import GRADIENT_CLIP, process_seconds
from plain_loop import GPT, build_optimizer, count_parameters
from torch import Tensor, nn
from torch.nn import functional

LAYERS, HEADS, DIM, CONTEXT, BATCH = 4, 4, 128, 64, 12
STEPS, WARMUP_STEPS, LEARNING_RATE, LAST_LEARNING_RATE = 2000, 100, 1e-3, 1e-4
TARGET_LOSS = 1.88
IGNORED_TARGET = -100  # what PyTorch's cross entropy leaves out of its mean


def read_characters(path: Path) -> tuple[Tensor, Tensor, int]:
    """The training split (first 90%), the validation split, and how many characters there are."""
    text = path.read_text(encoding="utf-8")
    characters = {character: index for index, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([characters[character] for character in text])
    boundary = int(len(tokens) * 0.9)
    return tokens[:boundary], tokens[boundary:], len(characters)


def sample_batch(tokens: Tensor) -> tuple[Tensor, Tensor]:
    starts = torch.randint(len(tokens) - CONTEXT, (BATCH, 1))
    windows = tokens[starts + torch.arange(CONTEXT + 1)]
    return windows[:, :-1], windows[:, 1:]


def learning_rate(step: int) -> float:
    """Linear warm-up, then half a cosine down to a tenth."""
    if step < WARMUP_STEPS:
        return LEARNING_RATE * (step + 1) / (WARMUP_STEPS + 1)
    done = (step - WARMUP_STEPS) / (STEPS - WARMUP_STEPS)
    return LAST_LEARNING_RATE + (LEARNING_RATE - LAST_LEARNING_RATE) * (1 + math.cos(math.pi * done)) / 2


@torch.no_grad()
def evaluate(model: GPT, tokens: Tensor) -> float:
    """Mean loss over every target of the split, in windows that do not overlap; the last one is padded."""
    padding = -(len(tokens) - 1) % CONTEXT
    inputs = functional.pad(tokens[:-1], (0, padding)).view(-1, CONTEXT)
    targets = functional.pad(tokens[1:], (0, padding), value=IGNORED_TARGET).view(-1, CONTEXT)
    total = 0.0
    for some_inputs, some_targets in zip(inputs.split(BATCH), targets.split(BATCH), strict=True):
        total += model(some_inputs, some_targets).item() * int((some_targets != IGNORED_TARGET).sum())
    return total / (len(tokens) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="tinyshakespeare, one file of text")
    parser.add_argument("--steps", type=int, default=STEPS, help="stop early; the schedule stays that of 2000 steps")
    parser.add_argument("--evaluate-every", type=int, default=100, help="steps between evaluations")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1337)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    training, validation, vocabulary = read_characters(options.text)
    model = GPT(vocabulary, CONTEXT, LAYERS, HEADS, DIM, bias=False)
    optimizer = build_optimizer(model, LEARNING_RATE, betas=(0.9, 0.99))
    curve: list[tuple[float, int, float]] = []
    evaluation_seconds = 0.0
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        model(*sample_batch(training)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % options.evaluate_every == 0 or step + 1 == options.steps:
            seconds = process_seconds() - evaluation_seconds
            started = time.perf_counter()
            curve.append((seconds, (step + 1) * BATCH * CONTEXT, evaluate(model, validation)))
            evaluation_seconds += time.perf_counter() - started

    result = {
        "peer": "nanogpt",
        "curve": curve,
        f"seconds_to_{TARGET_LOSS}": next((seconds for seconds, _, loss in curve if loss <= TARGET_LOSS), None),
        "final_val_loss": curve[-1][2],
        "train_seconds_from_start": curve[-1][0],
        "evaluation_seconds": evaluation_seconds,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "threads": options.threads,
        "seed": options.seed,
        "parameters": count_parameters(model),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
