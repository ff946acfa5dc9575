"""What is done to a model from outside before it is trained: kernels, tensor ranks, recomputation, compilation.

The model file knows none of these. They go in this order: what is compiled includes what was changed before.
"""

import os
from functools import partial
from typing import Any

import torch
from torch.distributed.tensor.parallel import parallelize_module
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from shoal.core import native, recipe
from shoal.core.errors import InputError, RecipeError
from shoal.core.extras import silenced
from shoal.core.machine import cache_folder, cpp_compiler, python_headers
from shoal.core.native import matrices
from shoal.core.native.attention import attention, packed_attention
from shoal.core.native.dropout import dropout
from shoal.models.config import TransformerConfig
from shoal.models.foreign import Foreign
from shoal.models.layers import MLP, Dropout, Linear
from shoal.models.loss import GPU_CHUNK_BYTES, IGNORED, Softening, chunked, fused_chunk, softened
from shoal.models.transformer import Attention, Block, Transformer
from shoal.parallel.mesh import Mesh
from shoal.parallel.shards import Shards, whole_shards
from shoal.parallel.tensor import Alike, Pair, TensorRanks, Vocabulary, vocabulary_cross_entropy
from shoal.parallel.wire import Wire

TENSOR_CHUNK_BYTES = 32 << 20
"""Of fp32 logits of tensor ranks on CPUs, which exchange messages for each chunk: so they are larger than a rank's alone."""


def use_native_kernels(model: Transformer, precision: str, tokens: int) -> None:
    """Give the model our own kernels where they serve: in fp32 on a CPU, with a compiler to build them.

    `tokens` of a forward pass tell whether it is work enough: below, a call's own cost is more than what it saves.
    """
    config = model.config
    if model.head_weight.device.type != "cpu" or precision != "fp32":
        return
    if tokens * config.dim * config.hidden < matrices.LEAST_WORK or not native.available():
        return
    for module in model.modules():
        if isinstance(module, Attention):
            module.kernel, module.packed_kernel = attention, packed_attention
        elif isinstance(module, Dropout):
            module.kernel = dropout
    if not matrices.serves():
        return
    for module in model.modules():
        if isinstance(module, Linear):
            module.kernel = matrices.linear
        elif isinstance(module, MLP):
            module.kernel = matrices.mlp
    model.loss_kernel = matrices.cross_entropy


def soften_loss(model: Transformer, settings: recipe.Regular) -> None:
    """Let the model minimise a softened cross entropy; whatever computes it stays the same."""
    if soft := Softening(settings.label_smoothing, settings.z_loss):
        model.loss_kernel = softened(soft, model.loss_kernel)


def compile_blocks(model: Transformer, choice: str) -> str:
    """Compile every block with one graph, where wanted and possible, and on a GPU the loss; says in a word what was done.

    Blocks, not the whole model: one block's code serves all, so compiling takes a sixth of the time at six layers.
    """
    device = model.head_weight.device
    if choice == "off" or not len(model.blocks):
        return "eager"
    if not all(isinstance(block, Block) for block in model.blocks):
        return "eager (no layers of Shoal's own)"
    missing = None
    if device.type == "cpu":
        missing = "C++ compiler" if cpp_compiler() is None else None if python_headers() else "Python.h (python3-dev)"
    if missing:
        if choice == "on":
            raise InputError(f"train.compile is 'on', but there is no {missing} on this machine")
        return f"eager (no {missing} found)"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    if device.type == "cpu":
        os.environ.setdefault("CXX", str(cpp_compiler()))
        with silenced("torch.utils.cpp_extension"):  # the compiler needs it; it complains of CUDA's tools without a GPU
            import torch.utils.cpp_extension
    # what can't be compiled after all runs eager, with torch's own warning
    torch._dynamo.config.suppress_errors = choice == "auto"
    for block in model.blocks:
        assert isinstance(block, Block)
        # not its call: the hooks of sharding, and whether the block is left out, stay outside
        block.compute = torch.compile(block.compute)  # type: ignore[method-assign]
    if device.type == "cuda" and model.loss_kernel is None:
        model.loss_kernel = chunked(torch.compile(fused_chunk))
    return "compiled by block"


def divide_products(model: Transformer, wire: Wire, mesh: Mesh) -> Shards:
    """Divide matrix products, embedding and loss over the tensor ranks; returns what this rank has of each parameter."""
    if mesh.tensor.size == 1 or mesh.devices is None:
        return whole_shards(model)
    if isinstance(model, Foreign):
        raise RecipeError("'parallel.tensor' divides layers of Shoal's own, which this model has none of: --shard zero3")
    check_divisible(model.config, mesh.tensor.size)
    ranks = TensorRanks(wire, mesh.tensor)
    plan: dict[str, Any] = {
        "embedding": Vocabulary(ranks),
        "blocks.*.attention": Pair(ranks, ("qkv",), "out"),
        "blocks.*.mlp": Pair(ranks, ("gate", "up") if model.config.gated else ("up",), "down"),
    }
    if model.config.qk_norm:
        plan |= {"blocks.*.attention.query_norm": Alike(ranks), "blocks.*.attention.key_norm": Alike(ranks)}
    if model.head is not None:
        plan["head"] = Vocabulary(ranks)
    parallelize_module(model, mesh.devices["tensor"], plan)
    if model.head_bias is not None:
        ranks.cut(model, "head_bias", 0)
    for module in model.modules():
        if isinstance(module, Attention):
            module.heads //= mesh.tensor.size
            module.kv_heads //= mesh.tensor.size
    start = mesh.tensor.rank * model.config.vocabulary // mesh.tensor.size
    most = TENSOR_CHUNK_BYTES if model.head_weight.device.type == "cpu" else GPU_CHUNK_BYTES
    model.loss_kernel = vocabulary_cross_entropy(ranks, start, model.config.vocabulary, IGNORED, most)
    return ranks.shards(model)


def check_divisible(config: TransformerConfig, ranks: int) -> None:
    """`RecipeError` when heads or widths can't be divided over the tensor ranks."""
    for name, number in (("heads", config.heads), ("kv_heads", config.kv_heads), ("hidden", config.hidden)):
        if number % ranks:
            raise RecipeError(
                f"'parallel.tensor' is {ranks}, which does not divide 'model.{name}' ({number}): each tensor rank takes "
                "whole heads and an equal share of the MLP. Choose another number of tensor ranks"
            )
    if config.qk_norm and config.norm != "rms":
        raise RecipeError("'parallel.tensor' above 1 needs RMSNorm where queries and keys are normalised")


KEPT = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.shoal.linear.default,
    torch.ops.shoal.mlp.default,
    torch.ops.shoal.attention.default,
    torch.ops.shoal.packed_attention.default,
    torch.ops.shoal.sum_over_ranks.default,
)
"""What `selective` does not compute again: it takes most of the time, or talks to other ranks."""


def recompute_blocks(model: Transformer, choice: str) -> None:
    """Let backward compute a block's inner values again instead of keeping them (Chen et al. 2016, arXiv:1604.06174)."""
    if choice == "none":
        return
    if not all(isinstance(block, Block) for block in model.blocks):
        raise RecipeError("'train.recompute' is for layers of Shoal's own, which this model has none of: set it to none")
    selective: Any = {"context_fn": partial(create_selective_checkpoint_contexts, list(KEPT))}
    for block in model.blocks:
        assert isinstance(block, Block)
        chosen = selective if choice == "selective" else {}
        block.compute = partial(checkpoint, block.compute, use_reentrant=False, **chosen)  # type: ignore[method-assign]
