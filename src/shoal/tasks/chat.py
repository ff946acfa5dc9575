"""Take part in a dialogue: the assistant's turns are learnt, and what others say is read.

A dialogue is one piece, laid out by a chat template (`data.chat_template`); its targets are the tokens of the
assistant's turns, with the token that ends each. Where the template writes earlier turns otherwise once more follows,
each of the assistant's turns is a sample of its own, with all that is before it as the model sees it when it is to
reply. Bits per byte are theirs too: the nats of these targets over the bytes of what the assistant says. The last
evaluation lets the model write the assistant's last turn, and a judge, where one is given, says whether it is better
than the reference.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shoal.core.errors import InputError
from shoal.core.recipe import Recipe
from shoal.data.chat_template import ChatTemplate, Turn
from shoal.data.examples.dialogues import read_dialogues, read_turns
from shoal.data.examples.example import Example, Role
from shoal.data.examples.rows import Sample
from shoal.data.examples.texts import Framed
from shoal.data.sequences import Sequences
from shoal.data.tokenizer import TextTokenizer
from shoal.models.decoding import Decoding, decode
from shoal.models.transformer import Transformer
from shoal.tasks.judge import Judge, dialogue_key, read_replies, win_rate
from shoal.tasks.labelled import LabelledTask, next_token_batch, settled
from shoal.tasks.projection import loss_at, losses_by_piece
from shoal.tasks.task import Batch, scalar

MESSAGES = Role("messages", ("messages", "conversations", "conversation", "dialogue"))


class Chat(LabelledTask):
    """Replies by the assistant."""

    roles = (MESSAGES,)
    metric = "eval_loss"
    head = None
    writes = True
    outside = frozenset({"judge", "against", "template"})

    def __init__(self, recipe: Recipe, tokenizer: TextTokenizer, length: int, examples: Sequence[Example]) -> None:
        """`InputError` for a template or a judge that can't be used."""
        settings = recipe.chat
        self.template = ChatTemplate.of(tokenizer, settings.template)
        self.tokenizer, self.length = self.template.tokenizer, length
        # what is in the written folder already, or no model's business
        self.settings = settled(settings, template="", judge="", against="")
        self.judge = Judge.of(settings.judge, settings.judge_seconds) if settings.judge else None
        self.replies = read_replies(settings.against) if settings.against else None
        self.framed = Framed()
        self.read = self.learnt = self.dialogues = self.rewritten = 0
        self.added = self.tokenizer.vocabulary - tokenizer.vocabulary

    def samples(self, example: Example) -> list[Sample]:
        """One piece: the dialogue, up to the assistant's last turn; or one for each of the assistant's turns."""
        turns = read_turns(example.values.get("messages"), example.where)
        ends = [place for place, turn in enumerate(turns, 1) if turn.role == "assistant"]
        rewritten = self.template.rewrites(turns[: ends[-1]], example.where)
        self.dialogues += 1
        self.rewritten += rewritten
        parts = [turns[:end] for end in (ends if rewritten else ends[-1:])]
        return [self._sample(part, example.where, rewritten, part is parts[-1]) for part in parts]

    def _sample(self, turns: Sequence[Turn], where: str, alone: bool, last: bool) -> Sample:
        """A piece, of whose turns only the last one is learnt, if it is read for this `alone`; `last`: of its dialogue."""
        (reading,) = read_dialogues(self.template, [turns], self.length, self.framed, where, alone)
        self.read += len(reading.tokens)
        self.learnt += int((reading.turns >= 0).sum())
        self.projected = self.learnt / self.read
        size = sum(len(content.encode()) for content in (reading.said[-1:] if alone else reading.said))
        return (reading.piece(bytes=size, prompt=reading.prompt, replied=last),)

    def notes(self) -> list[str]:
        """How many dialogues were cut, and what the model is given for its template."""
        framed, notes = self.framed, []
        if framed.cut:
            notes.append(
                f"{framed.cut:,} of {framed.count:,} dialogues are longer than the {self.length:,} tokens that the model "
                "reads, and lost their beginning"
            )
        if self.rewritten:
            notes.append(
                f"{self.template.name} writes what the assistant has said otherwise once more follows: "
                f"{self.rewritten:,} of {self.dialogues:,} dialogues are read once for each of the assistant's turns, each "
                "time with what is before it as the model will see it"
            )
        if self.added:
            notes.append(
                f"the model has no chat template and gets Shoal's, with {self.added} new tokens, which begin at random"
            )
        return notes

    def batch(self, sequences: Sequences, device: torch.device) -> Batch:
        """Pieces, and where the assistant speaks."""
        return next_token_batch(sequences, device)

    def loss(self, model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed cross entropy of the assistant's tokens, and how many they are."""
        assert batch.at is not None
        hidden_BTD = model(batch.tokens, reach=batch.reach)
        return loss_at(model, hidden_BTD, batch.targets, batch.at), _count(batch)

    def sums(self, model: Transformer, batch: Batch) -> dict[str, Tensor]:
        """Loss and count."""
        return self.evaluated(model, batch, final=False)[0]

    def outputs(self, model: Transformer, batch: Batch, final: bool) -> list[Any]:
        """Of each piece the loss in nats, the bytes that it is of, and, if `final`, the tokens of a reply to a dialogue."""
        return self.evaluated(model, batch, final)[1]

    def evaluated(self, model: Transformer, batch: Batch, final: bool) -> tuple[dict[str, Tensor], list[Any]]:
        """Both of one pass, but for the replies."""
        assert batch.pieces is not None
        losses_P = losses_by_piece(model, model(batch.tokens, reach=batch.reach), batch)
        losses = losses_P.tolist()
        sizes = batch.pieces.values["bytes"].tolist() if losses else []
        replies = self._replies(model, batch) if final else [None] * len(losses)
        return {"loss": losses_P.sum(), "count": _count(batch)}, list(zip(losses, sizes, replies, strict=True))

    def predict(self, examples: Sequence[Example], outputs: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        """The assistant's last turn, where one was written, and the loss of what the data says in its turns."""
        predictions = []
        for its in outputs:
            losses, sizes, replies = zip(*its, strict=True)
            reply = {} if replies[-1] is None else {"reply": self.tokenizer.decode(replies[-1])}
            predictions.append({"loss": sum(losses), "bytes": sum(sizes), **reply})
        return predictions

    def judged(self, example: Example, prediction: dict[str, Any]) -> dict[str, Any]:
        """The prediction with the judge's verdict, where there is a judge."""
        if self.judge is None:
            return prediction
        *prompt, answer = self._to_last_answer(example)
        reference = answer.content
        if self.replies is not None:
            key = dialogue_key(example.values["messages"])
            if key not in self.replies:
                raise InputError(f"{example.where}: the file of 'chat.against' has no reply to this dialogue")
            reference = self.replies[key]
        verdict = self.judge.compare(prompt, prediction["reply"], reference, example.where)
        return prediction | {"verdict": verdict}

    def measure(self, examples: Sequence[Example], predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Bits per byte of the assistant's turns, and how often ours was the better reply."""
        nats, size = (sum(prediction[name] for prediction in predictions) for name in ("loss", "bytes"))
        verdicts = [prediction for prediction in predictions if "verdict" in prediction]
        return {"bpb": nats / math.log(2) / size} | (win_rate(verdicts) if verdicts else {})

    def describe(self) -> dict[str, Any]:
        """Where `transformers` stops: at a turn's end."""
        return {"eos_token_id": self.template.end}

    def _to_last_answer(self, example: Example) -> list[Turn]:
        turns = read_turns(example.values["messages"], example.where)
        return turns if turns[-1].role == "assistant" else turns[:-1]

    def _replies(self, model: Transformer, batch: Batch) -> list[Sequence[int] | None]:
        """A reply in the place of each dialogue's last turn; None for pieces that are not the last of their dialogue."""
        assert batch.pieces is not None
        tokens_N, values = batch.tokens.flatten(), batch.pieces.values
        replies: list[Sequence[int] | None] = [None] * len(batch.pieces.samples)
        chosen = [number for number, replied in enumerate(values["replied"].tolist()) if replied] if replies else []
        places = [(int(batch.pieces.starts[number]), int(values["prompt"][number])) for number in chosen]
        prompts = [tokens_N[start : start + length].tolist() for start, length in places]
        how = Decoding(self.template.end, self.settings.reply, vocabulary=self.tokenizer.vocabulary)
        for number, said in zip(chosen, decode(model, prompts, how), strict=True):
            replies[number] = self._up_to_end(said)
        return replies

    def _up_to_end(self, said: Sequence[int]) -> Sequence[int]:
        """A reply before whatever ends it: a turn's end, or the text's."""
        return said[: next((place for place, token in enumerate(said) if token in self.template.ends), None)]


def _count(batch: Batch) -> Tensor:
    """Targets of a batch."""
    assert batch.at is not None
    return scalar(len(batch.at), batch.at.device)
