"""Small models of the three families, with weights of which none is zero."""

import torch

from shoal.models.config import TransformerConfig
from shoal.models.transformer import Transformer

GPT2 = TransformerConfig(
    vocabulary=37, context=24, layers=2, dim=16, heads=4, kv_heads=4, head_dim=4, hidden=40,
)  # fmt: skip
LLAMA = TransformerConfig(
    vocabulary=37, context=24, layers=2, dim=16, heads=4, kv_heads=2, head_dim=4, hidden=24, positions="rotary",
    norm="rms", activation="silu", gated=True, bias=False, tied=False,
)  # fmt: skip
QWEN3 = TransformerConfig(
    vocabulary=37, context=24, layers=2, dim=16, heads=4, kv_heads=2, head_dim=6, hidden=24, positions="rotary",
    norm="rms", norm_epsilon=1e-6, activation="silu", gated=True, qk_norm=True, bias=False, rope_theta=1e6,
)  # fmt: skip
BERT = TransformerConfig(
    vocabulary=37, context=24, layers=2, dim=16, heads=4, kv_heads=4, head_dim=4, hidden=40, norm_epsilon=1e-12,
    activation="gelu_erf", causal=False, norm_first=False, embedding_norm=True, segments=2, transform=True, head_bias=True,
    pooler=True,
)  # fmt: skip
MODERNBERT = TransformerConfig(
    vocabulary=37, context=24, layers=3, dim=16, heads=4, kv_heads=4, head_dim=4, hidden=24, positions="rotary",
    activation="gelu_erf", gated=True, bias=False, causal=False, embedding_norm=True, first_norm=False, window=2,
    global_every=2, rope_theta=160_000.0, transform=True, head_bias=True,
)  # fmt: skip
FAMILIES = {"gpt2": GPT2, "llama": LLAMA, "qwen3": QWEN3}


@torch.no_grad()
def fill(module: torch.nn.Module, seed: int = 1, scale: float = 0.3) -> None:
    """Give every parameter random values: matrices and biases around 0, the gains of norms around 1."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        parameter.normal_(0, scale, generator=random)
        if parameter.dim() == 1 and name.endswith("weight"):
            parameter.add_(1)


def random_model(config: TransformerConfig, seed: int = 1, scale: float = 0.3) -> Transformer:
    """A model in evaluation mode, its weights random."""
    model = Transformer(config).materialise().eval()
    fill(model, seed, scale)
    return model


def random_tokens(config: TransformerConfig, batch: int = 2, length: int | None = None, seed: int = 1) -> torch.Tensor:
    """Token ids [batch, length], as long as the context by default."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocabulary, (batch, length or config.context), generator=random)
