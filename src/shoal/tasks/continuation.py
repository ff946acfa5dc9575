"""A text that follows from another: what `translate` and `generate` share.

A decoder reads `given, between, wanted` in a row, and learns the tokens of what is wanted, and its end, from all before
them: `[begin] source SEP target` with the targets `target END`, whose last one is not read. The given text may see itself
both ways, as the input of an encoder does (prefix attention: Liu et al. 2018, arXiv:1801.10198; Raffel et al. 2020,
arXiv:1910.10683). Evaluations write what follows from the given texts by `models.decoding`.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.core.errors import InputError
from shoal.data.examples.example import Example
from shoal.data.examples.rows import NO_TARGET, Piece, Sample
from shoal.data.sequences import Sequences
from shoal.data.tokenizer import TextTokenizer
from shoal.models.decoding import Decoding, cache_bytes, decode
from shoal.models.transformer import Transformer
from shoal.tasks.labelled import LabelledTask, labelled_batch, no_loss
from shoal.tasks.projection import loss_at
from shoal.tasks.task import Batch, on_device, scalar

CACHE_BYTES = 1 << 30
"""Memory that texts which are written together take, about."""


class Continuation(LabelledTask):
    """The first role is the given text, the second what is wanted.

    `length`: tokens that are read of both, at most. A given text leaves `tokens` of them free, or half of them where that is
    less; what is wanted gets the rest. What is longer is cut, and counted; of a wanted text that was cut, no end is learnt.
    """

    metric = "eval_loss"
    projected = 0.5  # about half of the tokens
    head = None
    writes = True

    def __init__(
        self, tokenizer: TextTokenizer, length: int, settings: Any, between: Sequence[int], keep_start: bool = True
    ) -> None:
        """`settings`: the task's section; `keep_start`: of a given text that is too long, else its end."""
        self.tokenizer, self.length, self.settings, self.keep_start = tokenizer, length, settings, keep_start
        begin, self.end = tokenizer.special("begin"), tokenizer.end_of_text
        self.begin = np.array([begin] if begin != self.end else [], dtype=np.int64)
        self.between = np.array(between, dtype=np.int64)
        self.special = {*tokenizer.special_tokens.values(), self.end}
        self.room = length - min(settings.tokens, length // 2) - len(self.begin) - len(self.between)
        if self.room < 1:
            raise InputError(
                f"{length} tokens leave no room for a {self.roles[0].name}: 'examples.length', or the model's context, is "
                "too small"
            )
        self.count = self.given_cut = self.wanted_cut = 0

    def samples(self, example: Example) -> list[Sample]:
        """One piece."""
        given, wanted = (example.text(role.name) for role in self.roles)
        if not wanted.strip():
            raise InputError(f"{example.where}: the {self.roles[1].name} is empty, so there is nothing to learn")
        prompt, target = self.prompt(given), self.tokenizer.encode(wanted)
        tokens = np.concatenate((prompt, target))
        targets = np.concatenate((np.full(len(prompt) - 1, NO_TARGET), target, [self.end]))[: self.length]
        size = len(wanted.encode())
        self.count += 1
        if len(tokens) > self.length:
            tokens = tokens[: self.length]
            size = len(self.tokenizer.decode(target[: self.length - len(prompt) + 1]).encode())
            self.wanted_cut += 1
        prefix = len(prompt) if self.settings.prefix else 0
        return [(Piece(tokens, targets, prefix=prefix, values={"given": len(prompt), "bytes": size}),)]

    def prompt(self, given: str) -> NDArray[np.int64]:
        """Tokens of the given text, after which what is wanted follows."""
        tokens = self.tokenizer.encode(given)
        if len(tokens) > self.room:
            tokens = tokens[: self.room] if self.keep_start else tokens[-self.room :]
            self.given_cut += 1
        prompt = np.concatenate((self.begin, tokens, self.between))
        # an empty text starts where texts start
        return prompt if len(prompt) else np.array([self.end], dtype=np.int64)

    def notes(self) -> list[str]:
        """How many texts were cut."""
        lost = "end" if self.keep_start else "beginning"
        counts = ((self.given_cut, self.roles[0].name, lost), (self.wanted_cut, self.roles[1].name, "end"))
        return [
            f"{cut:,} of {self.count:,} examples have a {name} that is too long for {self.length} tokens, and lost its {end}"
            for cut, name, end in counts
            if cut
        ]

    def batch(self, sequences: Sequences, device: torch.device) -> Batch:
        """Pieces, and the places of their targets."""
        batch = labelled_batch(sequences, device)
        if sequences.labels is None:
            return batch
        places = np.flatnonzero(sequences.labels.targets.reshape(-1) != NO_TARGET)
        return Batch(
            batch.tokens, batch.targets, batch.read, batch.reach, at=on_device(places, device), pieces=batch.pieces
        )  # fmt: skip

    def loss(self, model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed cross entropy of what is wanted, and the number of its tokens, ends included."""
        hidden_BTD = model(batch.tokens, reach=batch.reach)
        if batch.at is None:
            return no_loss(hidden_BTD)
        count = scalar(len(batch.at), hidden_BTD.device)
        return loss_at(model, hidden_BTD, batch.targets, batch.at), count

    def sums(self, model: Transformer, batch: Batch) -> dict[str, Tensor]:
        """Loss, count, and the bytes of what is wanted."""
        loss_sum, count = self.loss(model, batch)
        sizes = batch.pieces.values["bytes"].sum() if batch.pieces and batch.pieces.samples else torch.zeros_like(count)
        return {"loss": loss_sum, "count": count, "bytes": sizes}

    def figures(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Nats a token, and bits a byte, of what is wanted."""
        bits = sums["loss"] / math.log(2) / max(sums["bytes"], 1)
        return {"loss": sums["loss"] / max(sums["count"], 1), "targets": int(sums["count"]), "bpb": bits}

    def outputs(self, model: Transformer, batch: Batch, final: bool) -> list[Any]:
        """Tokens that the model writes after each given text; in mid-run, after those of the first `early` examples."""
        pieces = batch.pieces
        assert pieces is not None
        chosen = [number for number, sample in enumerate(pieces.samples) if final or sample < self.settings.early]
        written: list[Any] = [None] * len(pieces.samples)
        if chosen:
            tokens = batch.tokens.flatten().cpu()
            edges = [(int(pieces.starts[number]), int(pieces.values["given"][number])) for number in chosen]
            prompts = [tokens[start : start + length].tolist() for start, length in edges]
            for number, text in zip(chosen, self.write(model, prompts), strict=True):
                written[number] = text
        return written

    def write(
        self,
        model: Transformer,
        prompts: Sequence[Sequence[int]],
        tokens: int = 0,
        random: Sequence[torch.Generator] | None = None,
    ) -> list[list[int]]:
        """What follows each prompt; `tokens` of it at most, where that is not the recipe's number (0).

        `random`: of each prompt, where tokens are drawn and not searched for.
        """
        settings = self.settings
        how = Decoding(
            self.end,
            tokens or settings.tokens,
            settings.beams,
            settings.length_penalty,
            vocabulary=self.tokenizer.vocabulary,
        )
        longest = min(model.config.context, max(map(len, prompts)) + how.most)
        together = max(1, CACHE_BYTES // (cache_bytes(model) * how.beams * longest))
        groups = [slice(start, start + together) for start in range(0, len(prompts), together)]
        return [
            text
            for its in groups
            for text in decode(model, prompts[its], how, settings.prefix, random=None if random is None else random[its])
        ]

    def answer(self, model: Transformer, given: str, tokens: int = 0) -> str:
        """The text that follows from a given one."""
        return self.text(self.write(model, [self.prompt(given).tolist()], tokens)[0])

    def text(self, tokens: Sequence[int]) -> str:
        """Written tokens as text; special ones are none."""
        return self.tokenizer.decode([token for token in tokens if token not in self.special])

    def predict(self, examples: Sequence[Example], outputs: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        """The texts; nothing for those that were not written."""
        return [{} if tokens is None else {"text": self.text(tokens)} for (tokens,) in outputs]

    def measure(self, examples: Sequence[Example], predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The figures of what was written."""
        wanted = self.roles[1].name
        pairs = [
            (prediction["text"], example.text(wanted))
            for example, prediction in zip(examples, predictions, strict=True)
            if prediction
        ]
        return self.compare([written for written, _ in pairs], [reference for _, reference in pairs])

    @abstractmethod
    def compare(self, written: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
        """How near texts are to what was wanted."""

    def describe(self) -> dict[str, Any]:
        """Nothing that its section doesn't say."""
        return {}
