"""The fast runner on a CPU: a whole step of a decoder in one native call, over weights in fp32 or fewer bits.

PyTorch calls some hundred operators for a token; a small model's token takes less time than that. A step here is one call
(core/native/decode.cpp), which reads each weight once for all texts, and prompts are read by the same call, a block of
tokens at a time. A text's logits don't depend, in any bit, on what is computed beside it or on how its prompt was divided.

Keys and values of all slots are allocated at once, in fp32: 2 × layers × kv_heads × head_dim × 4 bytes a token of each slot.
Weights in fp32 are used where the model holds them; others are copies, beside which the model's embeddings and norms are
still read.
"""

import ctypes
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from shoal.core.native import available
from shoal.core.native.decode import GROUP, MULTIPLE, Decoder, Format, Kept, Layer, Norm, Weight, decode, room
from shoal.core.native.matrices import ACTIVATIONS
from shoal.models.config import TransformerConfig
from shoal.models.layers import Linear
from shoal.models.transformer import Block, Transformer

BLOCK = 64
"""Tokens of a pass, at most: so many that reading the weights doesn't count, so few that activations stay in cache."""
PANEL = 16
"""Tokens whose keys lie together, as decode.cpp has them."""


def native_runner(model: Transformer, slots: int, capacity: int, weights: Format = "fp32") -> "NativeRunner | None":
    """A runner for texts of up to `capacity` tokens, or the model's context; None where the library can't serve the model.

    `weights`: how they are stored. The model's parameters must not change while the runner lives.
    """
    fitting = all(parameter.dtype == torch.float32 and parameter.device.type == "cpu" for parameter in model.parameters())
    plain = all(part.plain for part in model.modules() if isinstance(part, Linear))
    if not (fitting and plain and suits(model.config, weights) and available()):
        return None
    return NativeRunner(model, slots, min(capacity, model.config.context), weights)


def suits(config: TransformerConfig, weights: Format = "fp32") -> bool:
    """Whether the library computes models of that shape."""
    widths = config.dim, config.hidden, config.heads * config.head_dim
    return (
        config.causal
        and config.norm_first
        and not (config.segments or config.transform)
        and config.head_dim % MULTIPLE == 0
        and not any(width % (GROUP if weights == "int4" else MULTIPLE) for width in widths)
    )


class NativeRunner:
    """A `Runner`; `native_runner` makes it."""

    def __init__(self, model: Transformer, slots: int, capacity: int, weights: Format) -> None:
        config = model.config
        self.slots, self.capacity, self.weights = slots, capacity, weights
        self._vocabulary = config.vocabulary
        panels = -(-capacity // PANEL)
        # [layers, slots, kv_heads, panels, ...]: within a panel, keys are [head_dim][PANEL], values [PANEL][head_dim]
        shape = config.layers, slots, config.kv_heads, panels, PANEL * config.head_dim
        self._keys, self._values = torch.zeros(shape), torch.zeros(shape)
        self._lengths = [0] * slots
        self._kept = Kept()
        layers = [self._layer(cast(Block, block), number) for number, block in enumerate(model.blocks)]
        self._layers = (Layer * len(layers))(*layers)
        self._decoder = self._describe(model, panels * PANEL)
        self._room = room(self._decoder, BLOCK)

    def read(self, slot: int, tokens: Sequence[int], start: int) -> Tensor:
        """Read the text's tokens from place `start` on, and forget what the slot held from there.

        Returns the logits [vocabulary] of what follows the last.
        """
        return self.read_together([(slot, tokens, start)])[0]

    def read_together(self, parts: Sequence[tuple[int, Sequence[int], int]]) -> Tensor:
        """As `read`, (slot, tokens, start)s of different slots, in no more passes than all their tokens need.

        Returns the logits [len(parts), vocabulary] of what follows each.
        """
        for slot, tokens, start in parts:
            if not 0 <= start <= self._lengths[slot] or not tokens:
                raise ValueError(f"{len(tokens)} tokens from place {start} on, in a slot that holds {self._lengths[slot]}")
        inputs = [(token, slot, start + n) for slot, tokens, start in parts for n, token in enumerate(tokens[:-1])]
        inputs += [(tokens[-1], slot, start + len(tokens) - 1) for slot, tokens, start in parts]  # of which is told
        logits_PV = self._pass(inputs, len(parts))
        for slot, tokens, start in parts:
            self._lengths[slot] = start + len(tokens)
        return logits_PV

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Go on with each of different slots by a token; returns the logits [len(slots), vocabulary] of what follows."""
        inputs = [(token, slot, self._lengths[slot]) for token, slot in zip(tokens, slots, strict=True)]
        logits_SV = self._pass(inputs, len(inputs))
        for slot in slots:
            self._lengths[slot] += 1
        return logits_SV

    def copy(self, source: int, target: int, length: int) -> None:
        """Let `target` begin with the first `length` tokens of `source`."""
        if not 0 <= length <= self._lengths[source]:
            raise ValueError(f"the first {length} tokens of a slot that holds {self._lengths[source]}")
        panels = -(-length // PANEL)
        for kind in (self._keys, self._values):
            kind[:, target, :, :panels] = kind[:, source, :, :panels]
        self._lengths[target] = length

    def _pass(self, inputs: list[tuple[int, int, int]], told: int) -> Tensor:
        """Put (token, slot, place)s into their slots; the logits [told, vocabulary] of the last ones."""
        # the library trusts what it is given
        if not all(0 <= token < self._vocabulary and 0 <= slot < self.slots for token, slot, _ in inputs):
            raise ValueError(f"tokens are below {self._vocabulary}, slots below {self.slots}")
        if any(place >= self.capacity for *_, place in inputs):
            raise ValueError(f"a slot has room for {self.capacity} tokens")
        logits = torch.empty(told, self._vocabulary)
        first = len(inputs) - told
        for begin in range(0, len(inputs), BLOCK):
            end = min(begin + BLOCK, len(inputs))
            decode(self._decoder, inputs[begin:end], logits[max(0, begin - first) : max(0, end - first)], self._room)
        return logits

    def _weight(self, map: Linear | None) -> Weight:
        return Weight() if map is None else Weight.of(self._kept, map.weight, map.bias, self.weights)

    def _layer(self, block: Block, number: int) -> Layer:
        attention, mlp, kept = block.attention, block.mlp, self._kept
        norms = (block.attention_norm, attention.query_norm, attention.key_norm, block.mlp_norm)
        maps = (attention.qkv, attention.out, mlp.gate, mlp.up, mlp.down)
        slots = (kept.address(self._keys[number]), kept.address(self._values[number]))
        return Layer(*(Norm.of(kept, norm) for norm in norms), *map(self._weight, maps), *slots)

    def _describe(self, model: Transformer, capacity: int) -> Decoder:
        config, kept = model.config, self._kept
        rotation = model.rotation("", slice(None)) if config.positions == "rotary" else (None, None)
        position = None if model.position is None else model.position.weight
        tables = (model.embedding.weight, position, *rotation)
        norms = (model.embedding_norm, model.norm)
        head = Weight.of(kept, model.head_weight, model.head_bias, self.weights)
        return Decoder(
            *map(kept.address, tables), *(Norm.of(kept, norm) for norm in norms), head, ctypes.addressof(self._layers),
            config.layers, config.dim, config.heads, config.kv_heads, config.head_dim, config.hidden, capacity,
            config.norm_epsilon, config.norm == "rms", ACTIVATIONS.index(config.activation),
        )  # fmt: skip
