"""Which of two answers is the better one: direct preference optimisation (DPO, Rafailov et al. 2023, arXiv:2305.18290).

An answer's reward is β times how much likelier the model finds it than the reference does, the model that training starts
from; the loss is that of telling by the difference of their rewards, the margin, which of two answers was preferred:

    dpo    −(1 − ε) log σ(margin) − ε log σ(−margin)       ε: `smoothing` (cDPO, Mitchell 2023)
    ipo    (margin / β − 1 / 2β)²                           (Azar et al. 2023, arXiv:2310.12036)

The reference never changes, so its log-probabilities are computed once, before training, from its folder and not from the
weights at hand: a run that goes on has the same ones, and none has a second model in memory. They are computed in fp32, in
batches that don't depend on the number of ranks, which share these. A sample is both answers, so no batch parts them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from shoal.core.errors import InputError
from shoal.core.model_directory import read_model_directory
from shoal.core.recipe import Recipe
from shoal.data.chat_template import ChatTemplate, Turn
from shoal.data.examples.dialogues import Reading, read_answers, read_dialogues, read_turns, speaker
from shoal.data.examples.example import Example, Role
from shoal.data.examples.rows import Sample, collate
from shoal.data.examples.texts import Framed
from shoal.data.sequences import Sequences
from shoal.data.tokenizer import TextTokenizer
from shoal.models import hugging_face
from shoal.models.transformer import Transformer
from shoal.parallel.wire import Wire
from shoal.tasks.labelled import LabelledTask, next_token_batch, settled
from shoal.tasks.projection import losses_by_piece
from shoal.tasks.task import Batch, scalar

PROMPT = Role("prompt", ("prompt", "question", "instruction"))
CHOSEN = Role("chosen", ("chosen", "preferred"))
REJECTED = Role("rejected", ("rejected", "dispreferred"))

TOGETHER = 16
"""Pairs that the reference reads at once."""


class Prefer(LabelledTask):
    """Pairs of answers, the chosen one first."""

    roles = (PROMPT, CHOSEN, REJECTED)
    metric = "eval_accuracy"
    head = None

    def __init__(self, recipe: Recipe, tokenizer: TextTokenizer, length: int, examples: Sequence[Example]) -> None:
        """The reference is the recipe's model, where it names no other one."""
        self.tokenizer, self.length = tokenizer, length
        self.settings = settled(recipe.prefer, reference=recipe.prefer.reference or recipe.model.init_from)
        self.template = ChatTemplate.of(tokenizer) if tokenizer.config.get("chat_template") else None
        self.framed = Framed()
        self.read = self.learnt = 0

    def samples(self, example: Example) -> list[Sample]:
        """Two pieces: the prompt with the chosen answer, and with the rejected one."""
        readings = self._readings(example)
        if np.array_equal(readings[0].tokens, readings[1].tokens):
            raise InputError(f"{example.where}: chosen and rejected are the same answer, so neither can be preferred")
        self.read += sum(len(reading.tokens) for reading in readings)
        self.learnt += sum(len(reading.tokens) - reading.prompt for reading in readings)
        self.projected = self.learnt / self.read
        return [tuple(reading.piece(last=True) for reading in readings)]

    def completed(self, samples: list[Sample], wire: Wire) -> list[Sample]:
        """The samples with the reference's log-probabilities."""
        if not samples:
            return samples
        model = self._reference().to(wire.world.device)
        sizes = [sum(len(piece.tokens) for piece in sample) for sample in samples]
        order = np.argsort(sizes, kind="stable")
        groups = [order[start : start + TOGETHER] for start in range(0, len(order), TOGETHER)]
        mine: dict[int, list[float]] = {}
        for group in groups[wire.world.rank :: wire.world.size]:
            mine |= zip(group.tolist(), self._log_probabilities(model, [samples[number] for number in group]), strict=True)
        found = {number: pair for share in wire.gather_objects(mine) for number, pair in share.items()}
        return [
            tuple(
                replace(piece, computed={"reference": np.float32(value)})
                for piece, value in zip(sample, found[number], strict=True)
            )
            for number, sample in enumerate(samples)
        ]

    def notes(self) -> list[str]:
        """How many pairs were cut."""
        framed = self.framed
        if not framed.cut:
            return []
        told = f"{framed.cut:,} of {framed.count:,} pairs are longer than the {self.length:,} tokens that the model reads"
        return [f"{told}, and lost the beginning of their prompt"]

    def batch(self, sequences: Sequences, device: torch.device) -> Batch:
        """Pieces, and where the answers are."""
        return next_token_batch(sequences, device)

    def loss(self, model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed loss, and the number of pairs."""
        return self._summed(self.rewards(model, batch))

    def losses(self, margins_S: Tensor) -> Tensor:
        """The loss of each pair by its margin."""
        settings = self.settings
        if settings.loss == "ipo":
            return (margins_S / settings.beta - 1 / (2 * settings.beta)).square()
        right, wrong = F.logsigmoid(margins_S), F.logsigmoid(-margins_S)
        return -(1 - settings.smoothing) * right - settings.smoothing * wrong

    def rewards(self, model: Transformer, batch: Batch) -> Tensor:
        """Rewards [pairs, 2] of the chosen and the rejected answers."""
        assert batch.pieces is not None
        losses_P = losses_by_piece(model, model(batch.tokens, reach=batch.reach), batch)
        reference_P = batch.pieces.values.get("reference", losses_P)
        return (self.settings.beta * (-losses_P - reference_P)).view(-1, 2)

    def sums(self, model: Transformer, batch: Batch) -> dict[str, Tensor]:
        """Loss and count."""
        return self.evaluated(model, batch, final=False)[0]

    def outputs(self, model: Transformer, batch: Batch, final: bool) -> list[Any]:
        """The reward of each answer."""
        return self.evaluated(model, batch, final)[1]

    def evaluated(self, model: Transformer, batch: Batch, final: bool) -> tuple[dict[str, Tensor], list[Any]]:
        """Both of one pass."""
        rewards_S2 = self.rewards(model, batch)
        loss_sum, count = self._summed(rewards_S2)
        rewards: list[float] = rewards_S2.flatten().tolist()
        return {"loss": loss_sum, "count": count}, rewards

    def predict(self, examples: Sequence[Example], outputs: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        """Both rewards, and which answer the model has come to prefer."""
        return [
            {"prefers": "chosen" if chosen > rejected else "rejected", "chosen_reward": chosen, "rejected_reward": rejected}
            for chosen, rejected in outputs
        ]

    def measure(self, examples: Sequence[Example], predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """How often the chosen answer is preferred, and by which margin of rewards."""
        chosen, rejected = (
            float(np.mean([one[name] for one in predictions])) for name in ("chosen_reward", "rejected_reward")
        )
        return {
            "accuracy": float(np.mean([one["prefers"] == "chosen" for one in predictions])),
            "margin": chosen - rejected,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
        }

    def describe(self) -> dict[str, Any]:
        """Where `transformers` stops, which is as before: at a turn's end, if the model knows turns."""
        return {} if self.template is None else {"eos_token_id": self.template.end}

    def _summed(self, rewards_S2: Tensor) -> tuple[Tensor, Tensor]:
        """(summed loss, number of pairs)."""
        chosen_S, rejected_S = rewards_S2.unbind(1)
        return self.losses(chosen_S - rejected_S).sum(), scalar(len(chosen_S), chosen_S.device)

    def _readings(self, example: Example) -> list[Reading]:
        prompt, *answers = (example.values.get(role.name) for role in self.roles)
        if all(isinstance(value, str) for value in (prompt, *answers)):
            for role in self.roles[1:]:
                if not example.text(role.name).strip():
                    raise InputError(f"{example.where}: the {role.name} answer is empty")
            texts = [example.text(role.name) for role in self.roles]
            return read_answers(self.tokenizer, texts[0], texts[1:], self.length, self.framed, example.where)
        if self.template is None:
            raise InputError(
                f"{example.where}: the answers are turns of a dialogue, and the model has no chat template: tune it by task "
                "chat first, or give prompt, chosen and rejected as texts"
            )
        dialogues = [self._dialogue(prompt, example, role.name) for role in self.roles[1:]]
        if dialogues[0][:-1] != dialogues[1][:-1]:
            raise InputError(f"{example.where}: chosen and rejected answer different prompts")
        return read_dialogues(self.template, dialogues, self.length, self.framed, example.where, last=True)

    def _dialogue(self, prompt: Any, example: Example, role: str) -> list[Turn]:
        """The prompt's turns and the answer's, which may hold the prompt's already, up to the assistant's last."""
        answer = example.values.get(role)
        for name, value in (("prompt", prompt), (role, answer)):
            if not isinstance(value, str | list):
                raise InputError(f"{example.where}: the {name} is neither text nor a list of turns")
        asked, told = _messages(prompt, "user"), _messages(answer, "assistant")
        whole = bool(told) and isinstance(told[0], Mapping) and speaker(told[0]) != "assistant"
        turns = read_turns(told if whole else [*asked, *told], f"{example.where}: {role}")
        if turns[-1].role != "assistant":
            raise InputError(f"{example.where}: {role} ends with the user's turn: it must end with the assistant's answer")
        return turns

    def _reference(self) -> Transformer:
        """The reference, from its folder."""
        folder = Path(self.settings.reference)
        try:
            return hugging_face.build(*read_model_directory(folder)).eval()
        except InputError as error:
            raise InputError(f"the reference, 'prefer.reference': {error}") from None
        except ValueError as error:
            raise InputError(f"the reference, 'prefer.reference': {folder}: {error}") from None

    @torch.no_grad()
    def _log_probabilities(self, model: Transformer, samples: Sequence[Sample]) -> list[list[float]]:
        """Of both answers of each sample."""
        pieces = [piece for sample in samples for piece in sample]
        keys = np.zeros(1, dtype=np.uint64)
        sequences = collate(pieces, [0] * len(pieces), keys, causal=True, layout="padded")
        batch = self.batch(sequences, model.head_weight.device)
        losses_P = losses_by_piece(model, model(batch.tokens, reach=batch.reach), batch)
        log_probabilities: list[list[float]] = (-losses_P).view(-1, 2).tolist()
        return log_probabilities


def _messages(value: Any, role: str) -> list[Any]:
    """Turns as a file has them; a text is one of a role's."""
    return [{"role": role, "content": value}] if isinstance(value, str) else list(value)
