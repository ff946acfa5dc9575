"""What a recipe takes, computed before anything starts."""

from pathlib import Path
from typing import Any

from shoal.core.files import read_json
from shoal.core.recipe import Recipe
from shoal.models import hugging_face
from shoal.models.loss import CHUNK_BYTES
from shoal.models.transformer import Transformer, TransformerConfig
from shoal.train.exact import resolve
from shoal.train.schedule import Budget
from shoal.train.setup import make_transformer_config

PROCESS_BYTES = 450_000_000
"""What Python, torch and its compiler hold resident before the first tensor."""


def estimate(recipe: Recipe, vocabulary: int, world: int) -> dict[str, Any]:
    """Parameters, tokens, steps (None where only minutes end the run) and memory a rank, in bytes."""
    recipe = resolve(recipe, world)
    if recipe.model.init_from:
        config = hugging_face.config_from_hugging_face(read_json(Path(recipe.model.init_from) / "config.json"))
    else:
        config = make_transformer_config(recipe.model, vocabulary)
    parameters = sum(parameter.numel() for parameter in Transformer(config).parameters())
    budget = Budget.of(recipe.train)
    per_step = recipe.train.global_batch * config.context
    steps = budget.expected_steps(per_step)
    share = -(-recipe.train.global_batch // world)
    sequences = min(share, recipe.train.micro_batch or share)
    return {
        "parameters": parameters,
        "tokens_per_step": per_step,
        "tokens": steps * per_step if steps is not None else None,
        "steps": steps,
        "memory_bytes": memory_estimate(config, parameters, sequences * config.context, recipe.optimizer.kind),
    }


def memory_estimate(config: TransformerConfig, parameters: int, tokens: int, optimizer: str) -> int:
    """Weights, gradients and optimizer state in fp32, plus what backward keeps of `tokens` tokens at once.

    A block keeps about: its two inputs and their normalised forms, the MLP's input, queries, keys, values and the
    attention's output, and the MLP's inner activations (twice or three times their width).
    """
    states = 4 * parameters * (4 if optimizer == "adamw" else 3)
    attention = (config.heads * 2 + config.kv_heads * 2) * config.head_dim
    inner = config.hidden * (3 if config.gated else 2)
    activations = 4 * tokens * config.layers * (5 * config.dim + attention + inner)
    # some logits, the projection's gradient, and on a CPU two packed copies of the projection
    return PROCESS_BYTES + states + activations + 2 * CHUNK_BYTES + 3 * 4 * config.vocabulary * config.dim
