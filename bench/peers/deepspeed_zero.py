"""DeepSpeed: the plain model under `deepspeed.initialize` at a ZeRO stage; 0 is plain data parallelism.

One rank as it stands; several under `torchrun --nproc-per-node N`, over gloo where oneCCL's bindings are missing.
Losses are those of rank 0's share of the batch.
"""

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed guesses its accelerator when imported, unless told

import deepspeed
from deepspeed.accelerator import get_accelerator
from harness import GRADIENT_CLIP, Clock, Settings, batches, print_result
from plain_loop import build_model, build_optimizer, count_parameters
from torch import distributed

# What a launcher would set for a group of one; port 0 lets the system choose a free one.
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def main() -> None:
    settings = Settings.from_command_line(__doc__)
    if "RANK" not in os.environ:
        os.environ |= ALONE
    deepspeed.init_distributed(dist_backend=get_accelerator().communication_backend_name())
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    model = build_model(settings)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=build_optimizer(model, settings.learning_rate),
        config={
            "train_batch_size": settings.batch,
            "train_micro_batch_size_per_gpu": settings.batch // world_size,
            "zero_optimization": {"stage": settings.stage},
            "zero_allow_untested_optimizer": True,  # torch's AdamW
            "gradient_clipping": GRADIENT_CLIP,
            "steps_per_print": settings.steps + 1,
        },
    )
    if settings.compile:
        engine.compile()
    losses = []
    clock = Clock()
    for tokens, targets in batches(settings, rank, world_size):
        loss = engine(tokens, targets)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
        clock.tick()
    if rank == 0:
        name = f"deepspeed zero-{settings.stage}"
        print_result(f"{name} compiled" if settings.compile else name, settings, clock, losses, count_parameters(model))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
