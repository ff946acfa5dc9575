"""Where a recipe would compute on this machine, and the memory that is free there."""

import torch

from shoal.core.machine import available_memory_bytes
from shoal.core.recipe import Recipe


def device_of(recipe: Recipe, workers: int) -> torch.device:
    """A GPU where there is one for each rank and the recipe wants it, else the CPU."""
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return torch.device("cuda" if recipe.train.device != "cpu" and devices >= workers else "cpu")


def free_memory(recipe: Recipe, workers: int) -> int:
    """Bytes, of this machine, or of the GPUs that its ranks compute on."""
    if device_of(recipe, workers).type == "cuda":
        return sum(torch.cuda.mem_get_info(device)[0] for device in range(workers))
    return available_memory_bytes()
