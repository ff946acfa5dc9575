"""Codecs by name, for the recipe's `parallel.codec.kind`; one file each."""

from collections.abc import Callable

import torch

from shoal.core import recipe
from shoal.parallel.codecs.codec import Codec
from shoal.parallel.codecs.half import Half

CODECS: dict[str, Callable[[recipe.Codec], Codec]] = {
    "bf16": lambda settings: Half(torch.bfloat16),
    "fp16": lambda settings: Half(torch.float16),
}
