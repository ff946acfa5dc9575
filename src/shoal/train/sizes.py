"""What a recipe takes, computed before anything starts."""

from pathlib import Path
from typing import Any

from shoal.core.errors import InputError
from shoal.core.model_directory import read_model_names
from shoal.core.recipe import Recipe
from shoal.data.batch_sizes import BatchSizes, sequences_at_once
from shoal.models import hugging_face
from shoal.models.config import TransformerConfig
from shoal.models.loss import CHUNK_BYTES
from shoal.models.transformer import Transformer
from shoal.tasks import check_task
from shoal.train.exact import resolve
from shoal.train.model_setup import check_divisible
from shoal.train.models import make_transformer_config
from shoal.train.patience import check_regular
from shoal.train.schedule import Budget
from shoal.train.strategies import check_meeting, mesh_sizes

PROCESS_BYTES = 380_000_000
"""What Python, torch and our kernels hold resident before the first tensor (386 MB with a model of 0.2M parameters)."""

COMPILER_BYTES = 85_000_000
"""What torch's compiler adds to a process that has used it; its workers are processes of their own, and end."""

EAGER = 2.5
"""How much more backward keeps of a block that is not compiled: results of every pointwise operation, and what the allocator
does not give back between them (1.11 GB measured where 0.93 GB are with the compiler, at 1,024 tokens of gpt-bench)."""


def estimate(recipe: Recipe, vocabulary: int, world: int, tokens_per_row: float | None = None) -> dict[str, Any]:
    """Parameters, tokens, steps (None where only minutes end the run) and memory a rank, in bytes.

    `tokens_per_row`: real tokens of a sequence, on average, where the corpus is there to tell (None: all of the context).
    Raises `RecipeError` or `InputError` for what can't be arranged on so many ranks.
    """
    recipe = resolve(recipe, world)
    check_regular(recipe)
    config = transformer_config(recipe, vocabulary)
    sizes = _, shard, tensor = mesh_sizes(recipe, world)
    check_divisible(config, tensor)
    check_meeting(recipe, sizes)
    check_task(recipe, config)
    parameters = sum(parameter.numel() for parameter in Transformer(config).parameters())
    budget = Budget.of(recipe.train)
    tokens = tokens_per_row or config.context
    batches = BatchSizes.of(recipe, tokens)
    per_step = round(batches.largest * tokens)
    steps = budget.expected_steps(batches, tokens)
    sequences = sequences_at_once(recipe, world // tensor)
    states = states_formula(recipe.parallel.shard, recipe.optimizer.kind, parameters, sizes)
    if recipe.regular.ema:  # divided as the optimizer's state is
        states += 4 * parameters // (tensor * (1 if recipe.parallel.shard == "replicate" else shard))
    compiled = recipe.train.compile != "off"
    activations = activation_memory(config, sequences * config.context, tensor, recipe.train.recompute, compiled)
    gathered = gathered_memory(recipe.parallel.shard, config, parameters, sizes)
    copied = states * 3 // 4  # while a checkpoint is written: weights and moments once more, where activations were
    return {
        "parameters": parameters,
        "tokens_per_step": per_step,
        "tokens": round(batches.position_after(steps) * tokens) if steps is not None else None,
        "steps": steps,
        "states_bytes": states,
        "memory_bytes": states
        + meeting_memory(recipe, parameters, sizes)
        + PROCESS_BYTES
        + COMPILER_BYTES * compiled
        + max(activations + gathered, copied),
    }


def transformer_config(recipe: Recipe, vocabulary: int) -> TransformerConfig:
    """The shape that the recipe trains; `InputError` for a folder to start from that can't be."""
    if folder := recipe.model.init_from:
        try:
            return hugging_face.shape_with_heads(*read_model_names(Path(folder)))
        except ValueError as error:
            raise InputError(f"{folder}: {error}") from None
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


def gathered_memory(kind: str, config: TransformerConfig, parameters: int, sizes: tuple[int, int, int]) -> int:
    """Bytes that a rank has besides its own part while it computes with ZeRO-2 or ZeRO-3.

    Of two blocks and of the vocabulary: the message that weights come in, weights, and gradients before they are scattered.
    ZeRO-2 keeps the weights of all blocks.
    """
    _, shard, tensor = sizes
    if shard == 1 or kind not in ("zero2", "zero3"):
        return 0
    outer = config.vocabulary * config.dim * (1 if config.tied else 2)
    held = min(parameters, outer + 2 * (parameters - outer) // config.layers)
    return 4 * (2 * held + (parameters if kind == "zero2" else held)) // tensor


def activation_memory(config: TransformerConfig, tokens: int, tensor: int, recompute: str, compiled: bool) -> int:
    """Bytes that backward keeps of `tokens` tokens at once, and those of the loss.

    A block keeps about: its two inputs and their normalised forms, the MLP's input, queries, keys, values and the
    attention's output, and the MLP's inner activations (twice or three times their width); recomputed, its input alone.
    """
    attention = (config.heads * 2 + config.kv_heads * 2) * config.head_dim // tensor
    inner = config.hidden * (3 if config.gated else 2) // tensor
    block = (5 * config.dim + attention + inner) * (1.0 if compiled else EAGER)
    kept = (config.layers * config.dim + block) if recompute == "full" else config.layers * block
    # some logits, the projection's gradient, and on a CPU two packed copies of the projection
    logits = min(CHUNK_BYTES, 4 * tokens * config.vocabulary)
    return int(4 * tokens * kept) + 2 * logits + 3 * 4 * config.vocabulary * config.dim // tensor
