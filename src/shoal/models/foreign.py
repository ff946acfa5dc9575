"""A model that Shoal has no code of its own for: whatever `transformers` computes, under the same training loop.

It is slower, as none of our kernels serve and padding is computed, too; and it can't be divided over tensor ranks. It stands
where a `Transformer` stands: hidden states of tokens, a projection onto the vocabulary or a task's head, a list of blocks.

Shape suffixes as in `models.transformer`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.models.cache import Cache
from shoal.models.config import TransformerConfig
from shoal.models.heads import TaskHead
from shoal.models.reach import Reach
from shoal.models.transformer import Transformer, matrix_flops

WITHOUT_LIMIT = 2048
"""Context of models whose positions have no table, in tokens."""


class Foreign(Transformer):
    """`theirs`: a model of `transformers`, with its projection onto the vocabulary or without."""

    def __init__(self, config: TransformerConfig, theirs: Any) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.theirs = theirs
        self.pooler = self.transform = None  # what they have of these is their own
        self.task_head = TaskHead(config) if config.head else None

    def forward(
        self,
        tokens_BT: Tensor,
        cache: Cache | None = None,
        reach: Reach | None = None,
        segments_BT: Tensor | None = None,
    ) -> Tensor:
        """As `Transformer.forward`; rows are one piece each, padded at the end."""
        if cache is not None:
            raise ValueError("only Shoal's own models keep what they have read")
        inputs: dict[str, Any] = {"input_ids": tokens_BT}
        if reach is not None:  # padding sees itself alone, text what begins with the row
            inputs["attention_mask"] = (reach.low == 0).long()
        if segments_BT is not None and self.config.segments:
            inputs["token_type_ids"] = segments_BT.clamp(max=self.config.segments - 1)
        with self._embedding():
            hidden_BTD: Tensor = self.theirs.base_model(**inputs).last_hidden_state
        return hidden_BTD

    @contextmanager
    def _embedding(self) -> Iterator[None]:
        """Inside, what their tokens' embedding gives goes through `on_embedded`."""
        changed = self.on_embedded
        if changed is None:
            yield
            return
        hook = self.theirs.get_input_embeddings().register_forward_hook(lambda _, tokens, x_BTD: changed(x_BTD))
        try:
            yield
        finally:
            hook.remove()

    def like(self, config: TransformerConfig) -> "Foreign":
        """Another one, with the same weights and the head of that shape."""
        return Foreign(config, deepcopy(self.theirs))

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """The layers: the longest list of modules."""
        lists = [module for module in self.theirs.base_model.modules() if isinstance(module, nn.ModuleList)]
        return max(lists, key=len, default=nn.ModuleList())

    @property
    def tied_table(self) -> None:
        """What theirs ties can't be told apart."""
        return None

    @property
    def head_weight(self) -> Tensor:
        """The output projection [vocabulary, dim]; without one, the embedding."""
        words = self.theirs.get_output_embeddings() or self.theirs.get_input_embeddings()
        weight: Tensor = words.weight
        return weight

    def project(self, hidden_BTD: Tensor) -> Tensor:
        """Logits [batch, tokens, vocabulary]."""
        return F.linear(hidden_BTD, self.head_weight, getattr(self.theirs.get_output_embeddings(), "bias", None))

    def drop_layers(self, generator: torch.Generator) -> None:
        """Nothing: these layers know no stochastic depth."""

    def materialise(self, device: torch.device | str = "cpu") -> "Foreign":
        """Nothing is computed rather than learned here."""
        return self.to(device)

    def flops_per_token(self, tokens: int, projected: float = 1.0) -> float:
        """6 a weight of the layers' matrices, and attention's two products, as far as a list of blocks tells."""
        config = self.config
        matrices, reached = matrix_flops(self.blocks, all(parameter.requires_grad for parameter in self.parameters()))
        attention = sum(12.0 if passed else 4.0 for passed in reached) * tokens * config.dim
        return matrices + attention + 6.0 * projected * config.vocabulary * config.dim


def foreign_config(theirs: Any, causal: bool) -> TransformerConfig:
    """What Shoal needs to know of a `transformers` configuration; `ValueError` where it doesn't say."""
    theirs = theirs.get_text_config()

    def said(*names: str) -> int | None:
        return next((value for name in names if isinstance(value := getattr(theirs, name, None), int)), None)

    dim, layers, heads = said("hidden_size", "n_embd", "d_model", "dim"), said("num_hidden_layers", "n_layer"), 1
    vocabulary = said("vocab_size")
    if dim is None or layers is None or vocabulary is None:
        raise ValueError(f"model type '{theirs.model_type}': its config.json has no width, layers or vocabulary")
    return TransformerConfig(
        vocabulary=vocabulary, context=said("max_position_embeddings", "n_positions", "seq_length") or WITHOUT_LIMIT,
        layers=layers, dim=dim, heads=heads, kv_heads=heads, head_dim=dim, hidden=said("intermediate_size") or 4 * dim,
        causal=causal, segments=said("type_vocab_size") or 0,
    )  # fmt: skip
