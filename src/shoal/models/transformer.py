"""One Transformer for every decoder that Shoal trains: GPT-2's shape and Llama's are two settings of it.

Pre-norm residual blocks (Vaswani et al. 2017; Radford et al. 2019). What varies is data, in `TransformerConfig`:
learned or rotary positions (Su et al. 2021), LayerNorm or RMSNorm, a plain or a gated MLP (Shazeer 2020), grouped
keys and values (Ainslie et al. 2023), normalised queries and keys (Dehghani et al. 2023).

The fused `qkv` weight is laid out by groups, `[kv_head, queries of the group + key + value, head_dim]`: one matrix
product instead of three, and cutting its rows into equal parts still gives whole heads.

Shape suffixes: B batch, T tokens, D dim, H heads, K key-value heads, G queries a key-value head, E head dim,
S positions attended to, V vocabulary, N = B×T.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.models.cache import LayerCache
from shoal.models.loss import LossKernel


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a decoder. `ValueError` when the numbers don't fit together."""

    vocabulary: int
    context: int
    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    positions: Literal["learned", "rotary"] = "learned"
    norm: Literal["layer", "rms"] = "layer"
    norm_epsilon: float = 1e-5
    activation: Literal["gelu", "silu", "relu2"] = "gelu"
    gated: bool = False
    qk_norm: bool = False
    bias: bool = True
    tied: bool = True
    rope_theta: float = 10_000.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even for rotary positions")


GELU_SLOPE = 2 * math.sqrt(2 / math.pi)


class Transformer(nn.Module):
    """Tokens to hidden states; `project` turns these into logits. Built on the meta device: call `materialise`.

    `loss_kernel` may be set from outside: a function for `loss.linear_cross_entropy`.
    """

    cosine: Tensor
    sine: Tensor
    loss_kernel: LossKernel | None = None

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        with torch.device("meta"):
            self.embedding = nn.Embedding(config.vocabulary, config.dim)
            self.position = nn.Embedding(config.context, config.dim) if config.positions == "learned" else None
            self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
            self.norm = make_norm(config, config.dim)
            self.head = None if config.tied else nn.Linear(config.dim, config.vocabulary, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens_BT: Tensor, cache: list[LayerCache] | None = None) -> Tensor:
        """Hidden states [batch, tokens, dim] after the last norm.

        With a `cache` of one entry a layer, the tokens follow those seen before, and the cache grows by them.
        """
        start = cache[0].length if cache else 0
        end = start + tokens_BT.shape[1]
        if end > self.config.context:
            raise ValueError(f"{end} tokens are more than the model's context of {self.config.context}")
        x_BTD = self.embedding(tokens_BT)
        rotation = None
        if self.position is not None:
            x_BTD = x_BTD + self.position.weight[start:end]
        else:
            rotation = (self.cosine[start:end], self.sine[start:end])
        x_BTD = self.dropout(x_BTD)
        for index, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, rotation, cache[index] if cache else None)
        return self.norm(x_BTD)

    @property
    def head_weight(self) -> Tensor:
        """The output projection [vocabulary, dim]."""
        return self.embedding.weight if self.head is None else self.head.weight

    def project(self, hidden_BTD: Tensor) -> Tensor:
        """Logits [batch, tokens, vocabulary]."""
        return F.linear(hidden_BTD, self.head_weight)

    def materialise(self, device: torch.device | str = "cpu") -> "Transformer":
        """Allocate the weights, uninitialised, and fill what is computed rather than learned."""
        self.to_empty(device=device)
        if self.position is None:
            cosine, sine = rotary_table(self.config.context, self.config.head_dim, self.config.rope_theta)
            self.register_buffer("cosine", cosine.to(device), persistent=False)
            self.register_buffer("sine", sine.to(device), persistent=False)
        return self

    @torch.no_grad()
    def initialise(
        self, generator: torch.Generator, std: float = 0.02, embedding_std: float | None = None, zero: bool = False
    ) -> "Transformer":
        """Random weights as in GPT-2: normal, projections into the residual stream divided by √(2 layers), or zero."""
        residual_std = 0.0 if zero else std / math.sqrt(2 * self.config.layers)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            elif name.endswith(("out.weight", "down.weight")):
                parameter.zero_() if zero else parameter.normal_(0, residual_std, generator=generator)
            else:
                chosen = embedding_std if embedding_std is not None and name == "embedding.weight" else std
                parameter.normal_(0, chosen, generator=generator)
        return self

    def flops_per_token(self, tokens: int) -> float:
        """Floating-point operations of forward and backward a token, in a sequence of `tokens`.

        6 a weight that multiplies (the embedding look-up does not), and causal attention's two products, which on
        average reach half of the sequence: 6 × layers × tokens × heads × head_dim (PaLM's appendix B counts twice that,
        as if the masked half were computed).
        """
        config = self.config
        multiplying = sum(p.numel() for name, p in self.named_parameters() if p.dim() == 2 and "embedding" not in name)
        multiplying -= 0 if self.position is None else self.position.weight.numel()
        multiplying += config.vocabulary * config.dim if self.head is None else 0
        return 6.0 * multiplying + 6.0 * config.layers * tokens * config.heads * config.head_dim


class Block(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = make_norm(config, config.dim)
        self.attention = Attention(config)
        self.mlp_norm = make_norm(config, config.dim)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor] | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """[batch, tokens, dim] to the same."""
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), rotation, cache))
        return x_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD)))


CausalAttention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries [B, H, T, E], keys and values [B, K, T, E] to outputs [B, H, T, E], each seeing itself and what is before it."""


class Attention(nn.Module):
    """Causal self-attention over grouped heads.

    `causal` may be set from outside to a kernel for whole sequences; torch's own does everything else.
    """

    causal: CausalAttention | None = None

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.group = config.heads // config.kv_heads
        self.dropout = config.dropout
        self.qkv = Linear(config.dim, (config.heads + 2 * config.kv_heads) * config.head_dim, bias=config.bias)
        self.out = Linear(config.heads * config.head_dim, config.dim, bias=config.bias)
        self.query_norm = make_norm(config, config.head_dim) if config.qk_norm else None
        self.key_norm = make_norm(config, config.head_dim) if config.qk_norm else None

    def forward(
        self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor] | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """[batch, tokens, dim] to the same."""
        B, T, _ = x_BTD.shape
        qkv = self.qkv(x_BTD).view(B, T, self.kv_heads, self.group + 2, self.head_dim)
        q_BTKGE, k_BTKE, v_BTKE = qkv[..., :-2, :], qkv[..., -2, :], qkv[..., -1, :]
        q_BTHE = q_BTKGE.reshape(B, T, self.heads, self.head_dim)
        if self.query_norm is not None and self.key_norm is not None:
            q_BTHE, k_BTKE = self.query_norm(q_BTHE), self.key_norm(k_BTKE)
        if rotation is not None:
            q_BTHE, k_BTKE = rotate(q_BTHE, *rotation), rotate(k_BTKE, *rotation)
        q_BHTE, k_BKSE, v_BKSE = q_BTHE.transpose(1, 2), k_BTKE.transpose(1, 2), v_BTKE.transpose(1, 2)
        if cache is None and self.causal is not None and not (self.training and self.dropout):
            o_BHTE = self.causal(q_BHTE, k_BKSE, v_BKSE)
            return self.out(o_BHTE.transpose(1, 2).reshape(B, T, self.heads * self.head_dim))
        mask = None
        if cache is not None:
            k_BKSE, v_BKSE = cache.extend(k_BKSE, v_BKSE)
            mask = cache.mask(T)
        o_BHTE = F.scaled_dot_product_attention(
            q_BHTE,
            k_BKSE,
            v_BKSE,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None and T > 1,
            enable_gqa=self.group > 1,
        )
        return self.out(o_BHTE.transpose(1, 2).reshape(B, T, self.heads * self.head_dim))


class Linear(nn.Linear):
    """As torch's; `kernel` may be set from outside to another function of (x, weight, bias)."""

    kernel: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        return (self.kernel or F.linear)(input, self.weight, self.bias)


WeightAndBias = tuple[Tensor, Tensor | None]
MLPKernel = Callable[[Tensor, WeightAndBias, WeightAndBias | None, WeightAndBias, str], Tensor | None]
"""(x, up, gate, down, activation) to the output, or None where it doesn't serve."""


class MLP(nn.Module):
    """Up, nonlinearity, down; or, gated, a nonlinear gate times a linear path (SwiGLU with `silu`), down.

    `kernel` may be set from outside to one function for all of it.
    """

    kernel: MLPKernel | None = None

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate = Linear(config.dim, config.hidden, bias=config.bias) if config.gated else None
        self.up = Linear(config.dim, config.hidden, bias=config.bias)
        self.down = Linear(config.hidden, config.dim, bias=config.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[batch, tokens, dim] to the same."""
        gate, up, down = self.gate, self.up, self.down
        if self.kernel is not None:
            gating = None if gate is None else (gate.weight, gate.bias)
            y_BTD = self.kernel(x_BTD, (up.weight, up.bias), gating, (down.weight, down.bias), self.activation)
            if y_BTD is not None:
                return y_BTD
        if gate is None:
            return down(activate(up(x_BTD), self.activation))
        return down(activate(gate(x_BTD), self.activation) * up(x_BTD))


def make_norm(config: TransformerConfig, dim: int) -> nn.Module:
    """LayerNorm or RMSNorm over the last axis of width `dim`."""
    if config.norm == "layer":
        return nn.LayerNorm(dim, eps=config.norm_epsilon, bias=config.bias)
    return nn.RMSNorm(dim, eps=config.norm_epsilon)


def activate(x: Tensor, kind: str) -> Tensor:
    """GELU in its tanh form (as GPT-2), SiLU, or the squared ReLU (So et al. 2021).

    GELU is written with a sigmoid, (1 + tanh z) / 2 = sigmoid 2z: compiled for a CPU, forward and backward take a third of
    the time that `F.gelu` takes, 20 against 63 ms for [4096, 1536].
    """
    if kind == "gelu":
        return x * torch.sigmoid(GELU_SLOPE * (x + 0.044715 * x * x * x))
    return F.silu(x) if kind == "silu" else F.relu(x).square()


def rotary_table(context: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [context, head_dim / 2] of every position's angles, in fp32."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = torch.outer(torch.arange(context, dtype=torch.float32), frequency)
    return angle.cos(), angle.sin()


def rotate(x_BTHE: Tensor, cosine_TE: Tensor, sine_TE: Tensor) -> Tensor:
    """Turn each pair (i, i + E/2) by its position's angle: the half-split convention of Llama's weights."""
    precise = x_BTHE if x_BTHE.dtype == torch.float64 else x_BTHE.float()
    first, second = precise.chunk(2, dim=-1)
    cosine, sine = cosine_TE[:, None, :], sine_TE[:, None, :]
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).type_as(x_BTHE)
