"""What a recipe takes, computed before anything starts."""

from pathlib import Path
from typing import Any

from shoal.core.files import read_json
from shoal.core.recipe import Recipe
from shoal.models import hugging_face
from shoal.models.loss import CHUNK_BYTES
from shoal.models.transformer import Transformer, TransformerConfig
from shoal.tasks import check_task
from shoal.train.exact import resolve
from shoal.train.model_setup import check_divisible
from shoal.train.optimizers import check_optimizer
from shoal.train.schedule import Budget
from shoal.train.setup import make_transformer_config
from shoal.train.strategies import check_meeting, mesh_sizes

PROCESS_BYTES = 450_000_000
"""What Python, torch and its compiler hold resident before the first tensor."""


def estimate(recipe: Recipe, vocabulary: int, world: int, tokens_per_row: float | None = None) -> dict[str, Any]:
    """Parameters, tokens, steps (None where only minutes end the run) and memory a rank, in bytes.

    `tokens_per_row`: real tokens of a sequence, on average, where the corpus is there to tell (None: all of the context).
    Raises `RecipeError` or `InputError` for what can't be arranged on so many ranks.
    """
    recipe = resolve(recipe, world)
    config = transformer_config(recipe, vocabulary)
    sizes = _, shard, tensor = mesh_sizes(recipe, world)
    check_divisible(config, tensor)
    check_meeting(recipe, sizes)
    check_task(recipe, config)
    check_optimizer(recipe.optimizer, divided=shard * tensor > 1)
    parameters = sum(parameter.numel() for parameter in Transformer(config).parameters())
    budget = Budget.of(recipe.train)
    per_step = round(recipe.train.global_batch * (tokens_per_row or config.context))
    steps = budget.expected_steps(per_step)
    share = -(-recipe.train.global_batch * tensor // world)
    sequences = min(share, recipe.train.micro_batch or share)
    states = states_formula(recipe.parallel.shard, recipe.optimizer.kind, parameters, sizes)
    return {
        "parameters": parameters,
        "tokens_per_step": per_step,
        "tokens": steps * per_step if steps is not None else None,
        "steps": steps,
        "states_bytes": states,
        "memory_bytes": states
        + meeting_memory(recipe, parameters, sizes)
        + other_memory(config, sequences * config.context, tensor, recipe.train.recompute),
    }


def transformer_config(recipe: Recipe, vocabulary: int) -> TransformerConfig:
    """The shape that the recipe trains."""
    if recipe.model.init_from:
        return hugging_face.config_from_hugging_face(read_json(Path(recipe.model.init_from) / "config.json"))
    return make_transformer_config(recipe.model, vocabulary, related=recipe.masked.relation != "none")


def states_formula(kind: str, optimizer: str, parameters: int, sizes: tuple[int, int, int]) -> int:
    """Bytes of weights, gradients and optimizer state that a rank holds when the optimizer steps, in fp32.

    16 bytes a parameter with AdamW, of which the ranks that shard divide the optimizer's 8 (ZeRO-1) or all (ZeRO-2 and 3);
    tensor ranks divide all of it, but for what little is not cut. While it computes, ZeRO-2 holds all gathered weights
    beside, 4 bytes a parameter, and ZeRO-3 those of two blocks and of the vocabulary.
    """
    _, shard, tensor = sizes
    state = 4 if optimizer == "muon" else 8
    divided = {"replicate": 0, "zero1": state}.get(kind, 8 + state)
    return int(parameters * (8 + state - divided + divided / shard) / tensor)


def meeting_memory(recipe: Recipe, parameters: int, sizes: tuple[int, int, int]) -> int:
    """Bytes of what ranks keep in order to meet: feedback; where they step apart, common weights and outer momentum too."""
    replicate, shard, tensor = sizes
    coded = recipe.parallel.codec.kind != "none" and recipe.parallel.codec.feedback
    if recipe.parallel.sync != "local" or replicate == 1:
        return 4 * parameters // tensor * (coded and replicate * shard > 1)
    momentum = recipe.parallel.local.outer == "nesterov"
    divided = shard if recipe.parallel.shard != "replicate" else 1
    return 4 * parameters // (divided * tensor) * (1 + momentum + coded)


def other_memory(config: TransformerConfig, tokens: int, tensor: int, recompute: str) -> int:
    """The process, what backward keeps of `tokens` tokens at once, and the loss.

    A block keeps about: its two inputs and their normalised forms, the MLP's input, queries, keys, values and the
    attention's output, and the MLP's inner activations (twice or three times their width); recomputed, its input alone.
    """
    attention = (config.heads * 2 + config.kv_heads * 2) * config.head_dim // tensor
    inner = config.hidden * (3 if config.gated else 2) // tensor
    block = 5 * config.dim + attention + inner
    kept = (config.layers * config.dim + block) if recompute == "full" else config.layers * block
    # some logits, the projection's gradient, and on a CPU two packed copies of the projection
    return PROCESS_BYTES + 4 * tokens * kept + 2 * CHUNK_BYTES + 3 * 4 * config.vocabulary * config.dim // tensor
