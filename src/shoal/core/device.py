"""Where one process computes, alone."""

from typing import Literal

import torch

from shoal.core.errors import InputError

Device = Literal["auto", "cpu", "cuda"]
"""`auto`: a GPU where there is one."""


def find_device(choice: Device) -> torch.device:
    """The device of that name; `InputError` for a GPU that isn't there."""
    found = torch.cuda.is_available()
    if choice == "cuda" and not found:
        raise InputError("--device is 'cuda', but torch finds no GPU here; `shoal doctor` tells more")
    return torch.device("cuda" if found and choice != "cpu" else "cpu")
