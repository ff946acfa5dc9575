"""What computes the tokens of an engine: a model, and room for several texts' keys and values.

A slot holds one text, from its first token on. Prompts are read a part at a time, so that texts that are being written
don't wait for a long one; a step then goes on with any of the slots, each by one token. The engine knows tokens and slots; a
runner knows weights, and how they are multiplied.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from shoal.core.errors import InputError
from shoal.core.native.decode import Format
from shoal.models.cache import make_cache
from shoal.models.reach import Reach
from shoal.models.transformer import Transformer
from shoal.serve.native_runner import native_runner

Part = tuple[int, Sequence[int], int]
"""A slot, tokens of its text, and the place of the first of them."""


class Runner(Protocol):
    """Room for `slots` texts of up to `capacity` tokens."""

    slots: int
    capacity: int

    def read(self, slot: int, tokens: Sequence[int], start: int) -> Tensor:
        """Read the text's tokens from place `start` on, and forget what the slot held from there.

        Returns the logits [vocabulary] of what follows the last, in fp32.
        """

    def read_together(self, parts: Sequence[Part]) -> Tensor:
        """As `read`, parts of texts in different slots; returns the logits [len(parts), vocabulary] of what follows each."""

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Go on with each slot by a token; returns the logits [len(slots), vocabulary] of what follows, in fp32."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Let `target` begin with the first `length` tokens of `source`."""


class TorchRunner:
    """A runner for every decoder that Shoal reads, on any device: the training model itself, with a cache.

    `prefix`: the first so many tokens of a text see each other both ways (None: all that its slot is first given to read);
    they are to be read in one. `half`: the model's weights, and the cache, are in bf16 from now on. Logits are those of the
    whole text at once, but for the order of sums, which depends on how many rows are computed together.
    """

    def __init__(self, model: Transformer, slots: int, capacity: int, prefix: int | None = 0, half: bool = False) -> None:
        config = model.config
        if half:
            for parameter in model.parameters():  # and no buffers: rotary angles need their bits
                parameter.data = parameter.data.bfloat16()
        self.slots, self.capacity = slots, min(capacity, config.context)
        self._model, self._prefix = model, prefix
        self._cache = make_cache(config.layers, slots, config.kv_heads, self.capacity, config.head_dim, model.head_weight)

    @torch.inference_mode()
    def read(self, slot: int, tokens: Sequence[int], start: int) -> Tensor:
        """As `Runner.read`."""
        self._cache.lengths[slot] = start
        reach = None
        prefix = self._prefix if self._prefix is not None else len(tokens) if start == 0 else 0
        if start < prefix:
            reach = Reach.of_prefix(torch.tensor([prefix], device=self._model.head_weight.device), len(tokens))
        return self._logits([slot], [tokens], reach)[0]

    def read_together(self, parts: Sequence[Part]) -> Tensor:
        """As `Runner.read_together`: one after another, as a matrix product of a prompt's tokens is large enough."""
        return torch.stack([self.read(*part) for part in parts])

    @torch.inference_mode()
    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """As `Runner.step`."""
        return self._logits(slots, [[token] for token in tokens])

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """As `Runner.copy`."""
        for tensor in (*self._cache.keys, *self._cache.values):
            tensor[target, :, :length] = tensor[source, :, :length]
        self._cache.lengths[target] = length

    def _logits(self, slots: Sequence[int], tokens: Sequence[Sequence[int]], reach: Reach | None = None) -> Tensor:
        """What follows the last token of each slot [slots, vocabulary], on the CPU, where tokens are chosen."""
        part = self._cache.part(slots)
        hidden_RTD = self._model(torch.tensor(tokens, device=self._model.head_weight.device), part, reach)
        logits_RV = self._model.project(hidden_RTD[:, -1])
        self._cache.lengths[list(slots)] = part.lengths
        return logits_RV.float().cpu()


def make_runner(model: Transformer, slots: int, capacity: int, weights: Format = "fp32", both_ways: bool = False) -> Runner:
    """The fastest runner that serves the model here; `InputError` where none does with such `weights`, or in this memory.

    `both_ways`: prompts see themselves so, and are to be read in one.
    """
    try:
        native = None if both_ways else native_runner(model, slots, capacity, weights)
        if native is not None:
            return native
        half = weights == "bf16" and model.head_weight.device.type == "cuda"
        if weights == "fp32" or half:
            return TorchRunner(model, slots, capacity, None if both_ways else 0, half)
    except RuntimeError as error:  # PyTorch's, for memory that isn't there
        config = model.config
        asked = (
            2 * model.head_weight.element_size() * config.layers * config.kv_heads * config.head_dim * slots * capacity / 1e9
        )
        raise InputError(
            f"{slots} texts of {capacity} tokens have keys and values of {asked:,.0f} GB, for which there is no memory: "
            "ask for fewer, or shorter ones"
        ) from error
    raise InputError(
        f"weights in {weights} are computed with by Shoal's own library alone, which needs a CPU (--device cpu), a C++ "
        "compiler, and a model of a shape that it knows, without prefix attention; leave them in fp32, or on a GPU in bf16"
    )
