"""The shape of a model, as data."""

from dataclasses import dataclass
from typing import Literal

Pooling = Literal["first", "mean", "attention", "last"]
"""How a text's hidden states become one."""


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a model. `ValueError` when the numbers don't fit together."""

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
    activation: Literal["gelu", "gelu_erf", "silu", "relu2"] = "gelu"
    gated: bool = False
    qk_norm: bool = False
    bias: bool = True
    tied: bool = True
    rope_theta: float = 10_000.0
    dropout: float = 0.0
    """Share of embeddings, attention weights and residual branches dropped in training, but where the next three differ."""
    attention_dropout: float | None = None
    residual_dropout: float | None = None
    embedding_dropout: float | None = None
    layer_drop: float = 0.0
    """Chance of a block to be left out, where `drop_layers` is asked."""
    causal: bool = True
    """Whether a token sees only itself and what is before it."""
    norm_first: bool = True
    """Norms before attention and MLP, and one at the end; or after each, as in BERT."""
    embedding_norm: bool = False
    first_norm: bool = True
    """Whether the first block has a norm before its attention (not needed after `embedding_norm`)."""
    segments: int = 0
    """Kinds of text that have an embedding each (BERT's token types)."""
    window: int = 0
    """Positions on either side that a local layer sees (0: all layers see everything)."""
    global_every: int = 1
    """Of so many layers the first sees everything."""
    local_rope_theta: float = 10_000.0
    transform: bool = False
    """A dense layer, nonlinearity and norm before the output projection (BERT's masked-word head)."""
    head_bias: bool = False
    pooler: bool = False
    """A dense layer and tanh over the first token (BERT's)."""
    relation: bool = False
    """Two logits from the pooler: whether the second text follows the first."""
    head: Literal["", "sequence", "token", "span"] = ""
    """What a fine-tuned model scores: texts, tokens, or tokens as the first and last of an answer."""
    outputs: int = 0
    """Scores that the head gives."""
    pooling: Pooling = "first"
    """Where texts are scored."""
    head_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even for rotary positions")
        if self.window and self.causal:
            raise ValueError("a window is for models that see both ways")
        if self.relation and not self.pooler:
            raise ValueError("a relation is of what the pooler sums up")
        if bool(self.head) != bool(self.outputs):
            raise ValueError("a head has outputs, and outputs are a head's")

    @property
    def rotary_bases(self) -> dict[str, float]:
        """What begins the names of the tables of angles, and the base of each: local layers may have their own."""
        if self.positions == "learned":
            return {}
        return {"": self.rope_theta, "local_": self.local_rope_theta} if self.window else {"": self.rope_theta}

    def dropped(self, kind: Literal["attention", "residual", "embedding"]) -> float:
        """The share that is dropped of one kind."""
        own: float | None = getattr(self, f"{kind}_dropout")
        return self.dropout if own is None else own
