"""Texts to vectors, by an encoder: the mean of what it makes of each token, scaled to length 1.

A folder of `sentence-transformers` says by `1_Pooling/config.json` if the first token stands for the text instead. A model
that was fine-tuned to classify sums texts up as it does for its labels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from shoal.core.errors import InputError
from shoal.core.files import read_json
from shoal.core.model_directory import find_model_directory
from shoal.data.examples.rows import Piece, collate
from shoal.data.examples.texts import frame_parts
from shoal.data.tokenizer import TextTokenizer
from shoal.models.heads import places
from shoal.models.transformer import Transformer
from shoal.tasks.labelled import labelled_batch


class Embedder:
    """An encoder, and how it sums texts up."""

    def __init__(self, model: Transformer, tokenizer: TextTokenizer, first: bool = False) -> None:
        """`first`: by the first token, not by the mean; a model with a head for texts has its own way."""
        self.model, self.tokenizer, self.first = model, tokenizer, first

    @property
    def dim(self) -> int:
        """Numbers a text."""
        return self.model.config.dim

    def encode(self, text: str) -> Piece:
        """A text as the model reads it; `InputError` where it has no tokens, or more than the context."""
        return self.frame(self.tokenizer.encode(text))

    def frame(self, tokens: Sequence[int] | NDArray[np.int64]) -> Piece:
        """The same of a text that is tokens already."""
        if not len(tokens):
            raise InputError("the text is empty")
        if len(tokens) and not 0 <= min(tokens) <= max(tokens) < self.tokenizer.vocabulary:
            raise InputError(f"tokens are numbers from 0 to {self.tokenizer.vocabulary - 1}")
        framed, segments = frame_parts(self.tokenizer, [np.asarray(tokens, dtype=np.int64)])
        if len(framed) > self.model.config.context:
            raise InputError(f"the text has {len(framed)} tokens, the model's context is {self.model.config.context}")
        return Piece(framed, segments=segments)

    @torch.inference_mode()
    def embed(self, pieces: Sequence[Piece]) -> NDArray[np.float32]:
        """Vectors [pieces, dim] of length 1."""
        keys = np.zeros(1, dtype=np.uint64)
        sequences = collate(pieces, range(len(pieces)), keys, self.model.config.causal, "padded")
        batch = labelled_batch(sequences, self.model.head_weight.device)
        assert batch.pieces is not None
        hidden_BTD = self.model(batch.tokens, reach=batch.reach, segments_BT=batch.segments)
        pooled_PD = self._pooled(hidden_BTD, batch.pieces.starts, batch.pieces.lengths)
        vectors: NDArray[np.float32] = F.normalize(pooled_PD.float(), dim=-1).cpu().numpy()
        return vectors

    def _pooled(self, hidden_BTD: Tensor, starts_P: Tensor, lengths_P: Tensor) -> Tensor:
        if self.model.config.head == "sequence":
            return self.model.pool_texts(hidden_BTD, starts_P, lengths_P)
        hidden_ND = hidden_BTD.flatten(0, 1)
        if self.first:
            return hidden_ND[starts_P]
        number_M, place_M = places(starts_P, lengths_P)
        summed_PD = hidden_ND.new_zeros(len(starts_P), hidden_ND.shape[1]).index_add(0, number_M, hidden_ND[place_M])
        return summed_PD / lengths_P[:, None]


def takes_first_token(directory: Path) -> bool:
    """Whether a model's folder says that its first token stands for a text; `InputError` where it says what we don't do."""
    file = find_model_directory(directory) / "1_Pooling" / "config.json"
    said = read_json(file) if file.exists() else {}
    modes = {name for name, chosen in said.items() if name.startswith("pooling_mode_") and chosen is True}
    modes |= {f"pooling_mode_{name}" for name in str(said.get("pooling_mode", "")).split("+") if name}
    ways = [modes <= {f"pooling_mode_{name}{end}" for end in ("", "_tokens", "_token")} for name in ("mean", "cls")]
    if not any(ways):
        raise InputError(f"{file}: sums texts up by {', '.join(sorted(modes))}; Shoal does by the mean, or the first token")
    return bool(modes) and ways[1]
