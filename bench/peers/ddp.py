"""PyTorch's own data parallelism: the plain loop's model in `DistributedDataParallel` over gloo, fp32 or with PowerSGD.

A rank of several, started with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; alone, the same loop without it. What eth0
sends is read from its counter, where there is one. PowerSGD is torch's hook: rank 2, error feedback and warm start, from the
third step on (two are the least that it takes).
"""

import json
import os
import statistics
import sys
from pathlib import Path

import torch
from harness import GRADIENT_CLIP, Clock, Settings, batches
from plain_loop import build_model, build_optimizer, count_parameters
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as power_sgd
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

COUNTER = Path("/sys/class/net/eth0/statistics/tx_bytes")


def bytes_sent() -> int:
    return int(COUNTER.read_text()) if COUNTER.exists() else 0


def steps(settings: Settings, model: nn.Module, optimizer: Optimizer, rank: int, world_size: int) -> dict[str, float]:
    """Train, and tell what a step took and sent; as many parameters as `model` has."""
    clock, sent = Clock(), [bytes_sent()]
    for tokens, targets in batches(settings, rank, world_size):
        model(tokens, targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()
        sent.append(bytes_sent())
    measured = clock.step_seconds[settings.warmup :]
    return {
        "step_seconds": statistics.mean(measured),
        "wire_bytes": (sent[-1] - sent[settings.warmup]) / len(measured),
        "parameters": count_parameters(model),
    }


def main() -> None:
    compressed = "--power-sgd" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--power-sgd"]
    settings = Settings.from_command_line(__doc__)
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    plain = build_model(settings)
    optimizer = build_optimizer(plain, settings.learning_rate)
    model: nn.Module = torch.compile(plain) if settings.compile else plain
    if world_size > 1:
        distributed.init_process_group("gloo")
        parallel = DistributedDataParallel(model)
        if compressed:
            state = power_sgd.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2)
            parallel.register_comm_hook(state, power_sgd.powerSGD_hook)
        model = parallel
    result = steps(settings, model, optimizer, rank, world_size)
    print(json.dumps(result), flush=True)
    if world_size > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
