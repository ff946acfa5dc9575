"""Codecs by name, for the recipe's `parallel.codec.kind`; one file each. PowerSGD, which is none, has a seam of its own."""

from collections.abc import Callable

from shoal.core import recipe
from shoal.parallel.codecs.blocks import Blocks
from shoal.parallel.codecs.codec import Codec
from shoal.parallel.codecs.half import Bfloat16, Float16
from shoal.parallel.codecs.integers import Integers
from shoal.parallel.codecs.sign import Sign
from shoal.parallel.codecs.topk import TopK
from shoal.parallel.codecs.two_bit import TwoBit

CODECS: dict[str, Callable[[recipe.Codec], Codec]] = {
    "bf16": lambda settings: Blocks(Bfloat16()),
    "fp16": lambda settings: Blocks(Float16()),
    "int8": lambda settings: Blocks(Integers(8)),
    "int4": lambda settings: Blocks(Integers(4)),
    "two_bit": lambda settings: Blocks(TwoBit()),
    "topk": lambda settings: Blocks(TopK(settings.keep)),
    "sign": lambda settings: Blocks(Sign()),
}
