"""Where one process computes, alone."""

from typing import Literal, TypeVar

import torch
from torch import nn

from shoal.core.errors import InputError

Model = TypeVar("Model", bound=nn.Module)

Device = Literal["auto", "cpu", "cuda"]
"""`auto`: a GPU where there is one."""


def find_device(choice: Device, weights: str = "fp32") -> torch.device:
    """The device of that name, for `weights` in a format that only a CPU may compute with; `InputError` for no such GPU."""
    found = choice != "cpu" and torch.cuda.is_available()
    if choice == "cuda" and not found:
        raise InputError("--device is 'cuda', but torch finds no GPU here; `shoal doctor` tells more")
    wanted = choice == "cuda" or (choice == "auto" and weights in ("fp32", "bf16"))
    return torch.device("cuda" if found and wanted else "cpu")


def moved(model: Model, device: str | torch.device, name: object) -> Model:
    """The model of that `name` there; `InputError` where it doesn't fit."""
    try:
        return model.to(device)
    except torch.OutOfMemoryError as error:
        raise InputError(f"{name}: the model doesn't fit into the GPU's memory; --device cpu computes elsewhere") from error
