"""Random streams that depend on names, not on history.

A stream is derived from (seed, purpose, numbers), so that no code path can shift another's stream by drawing once
more, and a resumed run needs no saved generator state: step 1000 draws the same numbers whether or not the process
was there for step 999.
"""

import hashlib

import torch


def derive_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A 63-bit seed for one purpose, e.g. `derive_seed(1, "dropout", rank, step)`."""
    text = ":".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, purpose: str, *numbers: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator for one purpose."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, purpose, *numbers))
