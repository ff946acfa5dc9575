"""What computes the tokens of an engine: a model, and room for several texts' keys and values.

A slot holds one text, from its first token on. Prompts are read a part at a time, so that texts that are being written
don't wait for a long one; a step then goes on with any of the slots, each by one token. The engine knows tokens and slots; a
runner knows weights, and how they are multiplied.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Runner(Protocol):
    """Room for `slots` texts of up to `capacity` tokens."""

    slots: int
    capacity: int

    def read(self, slot: int, tokens: Sequence[int], start: int) -> Tensor:
        """Read the text's tokens from place `start` on, and forget what the slot held from there.

        Returns the logits [vocabulary] of what follows the last, in fp32.
        """

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Go on with each slot by a token; returns the logits [len(slots), vocabulary] of what follows, in fp32."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Let `target` begin with the first `length` tokens of `source`."""
