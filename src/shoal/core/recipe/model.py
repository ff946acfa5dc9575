"""The shape of the model."""

from typing import Annotated, Literal

from pydantic import Strict

from shoal.core.recipe.fields import Momentum, Positive, PositiveFloat, section


@section
class Model:
    """The Transformer: a preset's shape, and what to change in it (null keeps the preset's value)."""

    preset: str = "gpt2-small"
    """A named shape, which the other keys change; a wrong one is answered with all names."""
    init_from: str = ""
    """A folder in the Hugging Face layout to start from; its shape holds, only dropout may be set beside it."""
    adapter: str = ""
    """A folder with an adapter in `peft`'s layout: merged into `init_from`, or, by `tuning.what: lora`, trained on."""
    trust_remote_code: Annotated[bool, Strict()] = False
    """Run code that lies in the model's folder, where neither Shoal nor `transformers` has its own: only if trusted."""
    context: Positive | None = None
    """Longest sequence, in tokens."""
    layers: Positive | None = None
    """Transformer blocks."""
    dim: Positive | None = None
    """Width of the residual stream."""
    heads: Positive | None = None
    """Attention heads."""
    kv_heads: Positive | None = None
    """Heads of keys and values (grouped-query attention)."""
    head_dim: Positive | None = None
    """Width of a head."""
    hidden: Positive | None = None
    """Width inside the MLP."""
    activation: Literal["gelu", "gelu_erf", "silu", "relu2"] | None = None
    """Nonlinearity of the MLP; `gelu` in its tanh form (GPT-2), `gelu_erf` the exact one (BERT)."""
    qk_norm: Annotated[bool, Strict()] | None = None
    """Normalise queries and keys."""
    tied: Annotated[bool, Strict()] | None = None
    """Share the token embedding with the output projection."""
    rope_theta: PositiveFloat | None = None
    """Base of the rotary frequencies."""
    dropout: Momentum | None = None
    """Share of embedding, attention and residual values dropped in training."""
    attention_dropout: Momentum | None = None
    """Of attention's weights, where it differs from `dropout`; 0 leaves attention its fast kernel."""
    residual_dropout: Momentum | None = None
    """Of what attention and MLP add to the residual stream, where it differs from `dropout`."""
    embedding_dropout: Momentum | None = None
    """Of the embeddings, where it differs from `dropout`."""
    layer_drop: Momentum | None = None
    """Chance of a block to be left out of a step (stochastic depth); `dropout` does not set it."""
    zero_init: Annotated[bool, Strict()] | None = None
    """Start the projections into the residual stream at zero."""
    init_std: PositiveFloat | None = None
    """Standard deviation of the random initial weights."""
    embedding_std: PositiveFloat | None = None
    """Standard deviation of the initial token embedding, where it differs from `init_std`."""
    vocabulary_multiple: Positive | None = None
    """Round the model's vocabulary up to a multiple of this, as 64, which matrix units like (null: as the tokenizer's)."""
