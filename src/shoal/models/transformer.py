"""One Transformer for everything that Shoal trains: the shapes of GPT-2, Llama, BERT and ModernBERT are settings of it.

Residual blocks (Vaswani et al. 2017). What varies is data, in `TransformerConfig`: decoders see what is before them,
encoders everything (Devlin et al. 2019); norms come before attention and MLP (Radford et al. 2019) or after; learned or
rotary positions, LayerNorm or RMSNorm, a plain or a gated MLP (Shazeer 2020), grouped keys and values (Ainslie et al.
2023), normalised queries and keys (Dehghani et al. 2023), layers that see a window only (Beltagy et al. 2020).

The fused `qkv` weight is laid out by groups, `[kv_head, queries of the group + key + value, head_dim]`: one matrix
product instead of three, and cutting its rows into equal parts still gives whole heads.

Shape suffixes: B batch, T tokens, D dim, H heads, K key-value heads, G queries a key-value head, E head dim,
S positions attended to, V vocabulary, N = B×T.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.models.cache import Cache, LayerCache
from shoal.models.config import TransformerConfig
from shoal.models.heads import TaskHead
from shoal.models.layers import MLP, Dropout, Linear, Transform, make_norm
from shoal.models.loss import LossKernel
from shoal.models.reach import Reach
from shoal.models.rotary import rotary_table, rotate
from shoal.models.tied import TakesTiedGradients, as_projection, look_up


class Transformer(nn.Module):
    """Tokens to hidden states; `project` turns these into logits. Built on the meta device: call `materialise`.

    May be set from outside: `loss_kernel`, a function for `loss.linear_cross_entropy`, who gets `tied_gradients`, and
    `on_embedded`, which makes of the tokens' embeddings [batch, tokens, dim] those that go on.
    """

    loss_kernel: LossKernel | None = None
    tied_gradients: TakesTiedGradients | None = None
    on_embedded: Callable[[Tensor], Tensor] | None = None

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        with torch.device("meta"):
            self.embedding = nn.Embedding(config.vocabulary, config.dim)
            self.position = nn.Embedding(config.context, config.dim) if config.positions == "learned" else None
            self.segment = nn.Embedding(config.segments, config.dim) if config.segments else None
            self.embedding_norm = make_norm(config, config.dim) if config.embedding_norm else None
            self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
            self.norm = make_norm(config, config.dim) if config.norm_first else nn.Identity()
            self.pooler = nn.Linear(config.dim, config.dim) if config.pooler else None
            self.relation = nn.Linear(config.dim, 2) if config.relation else None
            self.transform = Transform(config) if config.transform else None
            self.task_head = TaskHead(config) if config.head else None
            self.head = None if config.tied else nn.Linear(config.dim, config.vocabulary, bias=False)
            self.head_bias = nn.Parameter(torch.empty(config.vocabulary)) if config.head_bias else None
        self.dropout = Dropout(config.dropped("embedding"))

    def forward(
        self,
        tokens_BT: Tensor,
        cache: Cache | None = None,
        reach: Reach | None = None,
        segments_BT: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [batch, tokens, dim] after the last norm.

        With a `cache` the tokens of each row follow those that it has seen, and the cache grows by them. `reach` says
        who sees whom, and where positions begin, if that is not everyone before (decoders) or everyone (encoders);
        `segments` [batch, tokens] the kind of text that a token belongs to (0); a model of one kind reads all as that.
        """
        end = tokens_BT.shape[1] + (cache.length if cache is not None else 0)
        if (reach is None or cache is not None) and end > self.config.context:
            raise ValueError(f"{end} tokens are more than the model's context of {self.config.context}")
        at: slice | Tensor = slice(0, end) if reach is None else reach.positions()
        layers: Sequence[LayerCache | None] = [None] * len(self.blocks)
        if cache is not None:
            (at, layers), reach = cache.layers(tokens_BT.shape[1], reach), None
        taker = self.tied_gradients if torch.is_grad_enabled() else None
        x_BTD = self.embedding(tokens_BT) if taker is None else look_up(tokens_BT, self.embedding.weight, taker)
        if self.on_embedded is not None:
            x_BTD = self.on_embedded(x_BTD)
        if self.position is not None:
            # looked up: the gradient of an index would be summed in whatever order threads come
            x_BTD = x_BTD + (self.position.weight[at] if isinstance(at, slice) else self.position(at))
        if self.segment is not None:
            kinds = None if segments_BT is None else segments_BT.clamp(max=self.config.segments - 1)
            x_BTD = x_BTD + (self.segment.weight[0] if kinds is None else self.segment(kinds))
        if self.embedding_norm is not None:
            x_BTD = self.embedding_norm(x_BTD)
        x_BTD = self.dropout(x_BTD)
        if reach is None and not self.config.causal:
            reach = Reach.whole(tokens_BT)
        near = reach.within(self.config.window) if reach is not None and self.config.window else reach
        wide, narrow = (None if self.position is not None else self.rotation(kind, at) for kind in ("", "local_"))
        for block, layer in zip(self.blocks, layers, strict=True):
            local = bool(block.local)
            x_BTD = block(x_BTD, narrow if local else wide, layer, near if local else reach)
        if cache is not None:
            cache.lengths = cache.lengths + tokens_BT.shape[1]
        return self.norm(x_BTD)

    def like(self, config: TransformerConfig) -> "Transformer":
        """Another one of that shape, uninitialised."""
        return Transformer(config).materialise(self.head_weight.device)

    def drop_layers(self, generator: torch.Generator) -> None:
        """Leave out each block with the chance `layer_drop`, in all training passes until asked again.

        Stochastic depth (Huang et al. 2016, arXiv:1603.09382) with one chance for all blocks (LayerDrop, Fan et al. 2020,
        arXiv:1909.11556): one decision a block and mini-batch, so what is left out is not computed.
        """
        for block, chance in zip(self.blocks, torch.rand(len(self.blocks), generator=generator).tolist(), strict=True):
            block.left_out = chance < self.config.layer_drop

    def rotation(self, kind: str, at: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions, [tokens, head_dim / 2] or with a batch before; `local_` ones for a window."""
        kind = kind if self.config.window else ""
        return self.get_buffer(f"{kind}cosine")[at], self.get_buffer(f"{kind}sine")[at]

    def score_texts(self, hidden_BTD: Tensor, starts_P: Tensor, lengths_P: Tensor) -> Tensor:
        """The task head's scores [pieces, outputs] of pieces of the rows, in fp32."""
        return self.score_pooled(self.pool_texts(hidden_BTD, starts_P, lengths_P))

    def pool_texts(self, hidden_BTD: Tensor, starts_P: Tensor, lengths_P: Tensor) -> Tensor:
        """One vector [pieces, dim] of each piece of the rows, as the task head sums it up."""
        assert self.task_head is not None
        return self.task_head.pool(hidden_BTD.flatten(0, 1), starts_P, lengths_P)

    def score_pooled(self, pooled_PD: Tensor) -> Tensor:
        """The task head's scores [pieces, outputs] of pooled texts, in fp32."""
        assert self.task_head is not None
        scores_PL: Tensor = self.task_head(self.summary(pooled_PD))
        return scores_PL

    def score_tokens(self, hidden_BTD: Tensor) -> Tensor:
        """The task head's scores [batch, tokens, outputs], in fp32."""
        assert self.task_head is not None
        return self.task_head(self.before_head(hidden_BTD))

    def summary(self, pooled_PD: Tensor) -> Tensor:
        """What stands between a pooled text [pieces, dim] and its scores: BERT's pooler, ModernBERT's transform."""
        return self.before_head(pooled_PD if self.pooler is None else torch.tanh(self.pooler(pooled_PD)))

    def pool(self, hidden_BTD: Tensor) -> Tensor:
        """BERT's summary [batch, dim] of each row, from its first token."""
        assert self.pooler is not None
        return torch.tanh(self.pooler(hidden_BTD[:, 0]))

    @property
    def tied_table(self) -> nn.Parameter | None:
        """The weight that is learnt as token embedding and as output projection; None where there is none."""
        weight = self.get_parameter("embedding.weight")
        return weight if self.config.tied and not self.config.head and weight.requires_grad else None

    @property
    def head_weight(self) -> Tensor:
        """The output projection [vocabulary, dim]."""
        if self.head is not None:
            return self.head.weight
        taker = self.tied_gradients if torch.is_grad_enabled() else None
        return self.embedding.weight if taker is None else as_projection(self.embedding.weight, taker)

    def before_head(self, hidden: Tensor) -> Tensor:
        """What the output projection is applied to, [..., dim] to the same."""
        return hidden if self.transform is None else self.transform(hidden)

    def project(self, hidden_BTD: Tensor) -> Tensor:
        """Logits [batch, tokens, vocabulary]."""
        return F.linear(self.before_head(hidden_BTD), self.head_weight, self.head_bias)

    def materialise(self, device: torch.device | str = "cpu") -> "Transformer":
        """Allocate the weights, uninitialised, and fill what is computed rather than learned."""
        self.to_empty(device=device)
        for kind, theta in self.config.rotary_bases.items():
            cosine, sine = rotary_table(self.config.context, self.config.head_dim, theta)
            self.register_buffer(f"{kind}cosine", cosine.to(device), persistent=False)
            self.register_buffer(f"{kind}sine", sine.to(device), persistent=False)
        return self

    @torch.no_grad()
    def initialise(
        self, generator: torch.Generator, std: float = 0.02, embedding_std: float | None = None, zero: bool = False
    ) -> "Transformer":
        """Random weights as in GPT-2: normal, projections into the residual stream divided by √(2 layers), or zero.

        BERT's, with norms after each sum, are not divided.
        """
        residual_std = 0.0 if zero else std / math.sqrt(2 * self.config.layers if self.config.norm_first else 1)
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

    def flops_per_token(self, tokens: int, projected: float = 1.0) -> float:
        """Floating-point operations of forward and backward a token, in a sequence of `tokens`.

        6 a weight that multiplies (embedding look-ups do not; the output projection, and what is before it, a `projected`
        share of the tokens), and attention's two products, 12 × heads × head_dim a position seen: on average half of the
        sequence where attention is causal (PaLM's appendix B counts all, as if the masked half were computed). A weight that
        is not learnt takes 4; below all that is learnt, there is no backward pass: 2, and attention a third.
        """
        config = self.config
        outer = config.vocabulary * config.dim + (config.dim**2 if self.transform is not None else 0)
        near = min(tokens, 2 * config.window + 1)
        matrices, reached = matrix_flops(self.blocks, self.embedding.weight.requires_grad)
        seen = [near if block.local else tokens for block in self.blocks]
        products = sum(its * (12.0 if passed else 4.0) for its, passed in zip(seen, reached, strict=True))
        attention = products * (0.5 if config.causal else 1.0) * config.heads * config.head_dim
        return matrices + attention + 2.0 * projected * outer * (1 + any(reached) + self.head_weight.requires_grad)


def matrix_flops(blocks: Iterable[nn.Module], reached: bool = False) -> tuple[float, list[bool]]:
    """(operations a token of the matrices of blocks, forward and backward; whether backward reaches each block).

    `reached`: whether it reaches what lies under the first.
    """
    total, passed = 0.0, []
    for block in blocks:
        reached = reached or any(parameter.requires_grad for parameter in block.parameters())
        passed.append(reached)
        for parameter in block.parameters():
            if parameter.dim() == 2:
                total += (2.0 + 2.0 * reached + 2.0 * parameter.requires_grad) * parameter.numel()
    return total, passed


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream; behind a norm, or with one after the sum.

    Left out in training, it is the identity; to make up for that, what it does to the stream counts 1 / (1 − `layer_drop`)
    times when it is not: the model that is evaluated, and written, is the expected one, and has no such scale.
    """

    def __init__(self, config: TransformerConfig, layer: int = 0) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.local = bool(config.window) and layer % config.global_every != 0
        bare = layer == 0 and not config.first_norm
        self.attention_norm = nn.Identity() if bare else make_norm(config, config.dim)
        self.attention = Attention(config)
        self.mlp_norm = make_norm(config, config.dim)
        self.mlp = MLP(config)
        self.dropout = Dropout(config.dropped("residual"))
        self.layer_drop = config.layer_drop
        self.left_out = False

    def forward(
        self,
        x_BTD: Tensor,
        rotation: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
        reach: Reach | None = None,
    ) -> Tensor:
        """[batch, tokens, dim] to the same."""
        if not (self.training and self.layer_drop):
            return self.compute(x_BTD, rotation, cache, reach)
        if self.left_out:
            return x_BTD
        return x_BTD.lerp(self.compute(x_BTD, rotation, cache, reach), 1 / (1 - self.layer_drop))

    def compute(
        self,
        x_BTD: Tensor,
        rotation: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
        reach: Reach | None = None,
    ) -> Tensor:
        """What the block does when it is not left out."""
        if self.norm_first:
            x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), rotation, cache, reach))
            return x_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD)))
        x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, rotation, cache, reach)))
        return self.mlp_norm(x_BTD + self.dropout(self.mlp(x_BTD)))


AttentionKernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], Tensor | None]
"""Queries [B, H, T, E], keys and values [B, K, T, E], and the edges of what each token sees [B, T] (None: from the first, to
itself), to outputs [B, H, T, E], or None where it doesn't serve."""
PackedAttentionKernel = Callable[[Tensor, Tensor | None, Tensor | None], Tensor | None]
"""The same of the three as the projection leaves them, [B, T, H, 3, E]."""


class Attention(nn.Module):
    """Self-attention over grouped heads.

    `kernel` and `packed_kernel` may be set from outside, for whole sequences; torch's own does everything else.
    """

    kernel: AttentionKernel | None = None
    packed_kernel: PackedAttentionKernel | None = None

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.group = config.heads // config.kv_heads
        self.dropout = config.dropped("attention")
        self.qkv = Linear(config.dim, (config.heads + 2 * config.kv_heads) * config.head_dim, bias=config.bias)
        self.out = Linear(config.heads * config.head_dim, config.dim, bias=config.bias)
        self.query_norm = make_norm(config, config.head_dim) if config.qk_norm else None
        self.key_norm = make_norm(config, config.head_dim) if config.qk_norm else None

    def forward(
        self,
        x_BTD: Tensor,
        rotation: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
        reach: Reach | None = None,
    ) -> Tensor:
        """[batch, tokens, dim] to the same; with a `cache`, that says who sees whom."""
        B, T, _ = x_BTD.shape
        qkv = self.qkv(x_BTD).view(B, T, self.kv_heads, self.group + 2, self.head_dim)
        whole = cache is None and not (self.training and self.dropout)
        bare = rotation is None and self.query_norm is None and self.group == 1
        if whole and bare and self.packed_kernel is not None:
            o_BHTE = self.packed_kernel(qkv, *(reach or (None, None)))
            if o_BHTE is not None:
                return self.out(o_BHTE.transpose(1, 2).flatten(2))
        q_BTKGE, k_BTKE, v_BTKE = qkv[..., :-2, :], qkv[..., -2, :], qkv[..., -1, :]
        q_BTHE = q_BTKGE.reshape(B, T, self.heads, self.head_dim)
        if self.query_norm is not None and self.key_norm is not None:
            q_BTHE, k_BTKE = self.query_norm(q_BTHE), self.key_norm(k_BTKE)
        if rotation is not None:
            q_BTHE, k_BTKE = rotate(q_BTHE, *rotation), rotate(k_BTKE, *rotation)
        q_BHTE, k_BKSE, v_BKSE = q_BTHE.transpose(1, 2), k_BTKE.transpose(1, 2), v_BTKE.transpose(1, 2)
        if whole and self.kernel is not None:
            o_BHTE = self.kernel(q_BHTE, k_BKSE, v_BKSE, *(reach or (None, None)))
            if o_BHTE is not None:
                return self.out(o_BHTE.transpose(1, 2).flatten(2))
        mask = None if reach is None else reach.mask()
        if cache is not None:
            k_BKSE, v_BKSE = cache.extend(k_BKSE, v_BKSE)
            mask = cache.mask
        o_BHTE = F.scaled_dot_product_attention(
            q_BHTE,
            k_BKSE,
            v_BKSE,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None and T > 1,
            enable_gqa=self.group > 1,
        )
        return self.out(o_BHTE.transpose(1, 2).flatten(2))
