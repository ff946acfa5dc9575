"""Dialogues: a list of turns in a row of a file, checked, and as a decoder reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from shoal.core.errors import InputError
from shoal.data import chat_template
from shoal.data.chat_template import ChatTemplate, Turn
from shoal.data.examples.rows import NO_TARGET, Piece
from shoal.data.examples.texts import Framed
from shoal.data.tokenizer import TextTokenizer

ROLES: dict[str, chat_template.Role] = {
    **{role: role for role in get_args(chat_template.Role)}, "human": "user", "gpt": "assistant",
}  # fmt: skip
"""Who speaks, by the names that files have for it."""


@dataclass(frozen=True)
class Reading:
    """A dialogue, or a prompt and its answer, as a decoder reads it: `tokens` [length], of which `turns` [length] says
    which of the assistant's each belongs to (-1: none). `said`: what the assistant says in them.
    """

    tokens: NDArray[np.int64]
    turns: NDArray[np.int64]
    said: tuple[str, ...]

    @property
    def prompt(self) -> int:
        """Tokens before the assistant's last turn."""
        return int(np.flatnonzero(self.turns == self.turns.max())[0])

    def piece(self, last: bool = False, **values: Any) -> Piece:
        """Its tokens but the last, each told to say the next one if that is the assistant's; `last`: in the last turn."""
        learnt = self.turns[1:] == self.turns.max() if last else self.turns[1:] >= 0
        return Piece(self.tokens[:-1], np.where(learnt, self.tokens[1:], NO_TARGET), values=values)


def read_turns(value: Any, where: str) -> list[Turn]:
    """The turns that a row holds, as `role` and `content` (or `from` and `value`); `InputError` for what is no dialogue.

    A system's turn may come first; then user and assistant take turns, the user first.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise InputError(f"{where}: a dialogue is a list of turns, {{role, content}}, and this is {_shown(value)}")
    turns = [_turn(one, number, where) for number, one in enumerate(value, 1)]
    check_order(turns, where)
    return turns


def _turn(value: Any, number: int, where: str) -> Turn:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: turn {number} is {_shown(value)}; a turn has a role and a content")
    role, content = speaker(value), value.get("content", value.get("value"))
    if role is None:
        given = _shown(value.get("role", value.get("from")))
        raise InputError(f"{where}: turn {number} has the role {given}; the roles are: {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise InputError(f"{where}: turn {number} has {_shown(content)} for its content, which must be text")
    if not content.strip():
        raise InputError(f"{where}: turn {number} is empty: every turn says something")
    return Turn(role, content)


def speaker(message: Mapping[str, Any]) -> chat_template.Role | None:
    """Whose turn it is; None where that can't be told."""
    return ROLES.get(str(message.get("role", message.get("from"))))


def check_order(turns: Sequence[Turn], where: str) -> None:
    """`InputError` where turns are out of order, or the assistant has none."""
    begin = int(turns[0].role == "system")
    for number, turn in enumerate(turns[begin:]):
        expected = ("user", "assistant")[number % 2]
        if turn.role != expected:
            raise InputError(
                f"{where}: turn {number + begin + 1} is out of order, the {turn.role}'s and not the {expected}'s: the "
                "system's may come first, then user and assistant take turns, the user first"
            )
    if not any(turn.role == "assistant" for turn in turns):
        raise InputError(f"{where}: the assistant has no turn, so there is nothing to learn")


def read_dialogues(
    template: ChatTemplate,
    dialogues: Sequence[Sequence[Turn]],
    length: int,
    framed: Framed,
    where: str,
    last: bool = False,
) -> list[Reading]:
    """Dialogues that differ in the assistant's last turn alone, as a decoder reads them, which sees `length` tokens.

    `last`: of the assistant's turns only the last one is looked for. What follows the assistant's last turn is left out.
    Where one is too long, all lose whole exchanges at their beginning, the system's turn excepted. If the last exchange
    is too long by itself, the question loses its beginning, until half of `length` is left of it, and then the answer
    its end. `InputError` where none of the answer would be left.
    """
    cut = [list(turns[: _last(turns) + 1]) for turns in dialogues]
    begin = int(cut[0][0].role == "system")
    whole = cut[0].copy()
    while True:
        encoded = [template.encode(turns, where, last) for turns in cut]
        excess = max(len(ids) for ids, _ in encoded) - (length + 1)  # the last token is only told
        if excess <= 0:
            break
        asked = cut[0][begin]
        shorter = _without_beginning(template.tokenizer, asked.content, excess, length // 2)
        if len(cut[0]) - begin > 2:
            for turns in cut:
                del turns[begin : begin + 2]
        elif shorter != asked.content:
            for turns in cut:
                turns[begin] = Turn(asked.role, shorter)
        else:
            break
    framed.count += 1
    framed.cut += excess > 0 or cut[0] != whole
    said = ([turn.content for turn in turns if turn.role == "assistant"] for turns in cut)
    return [_shortened(template.tokenizer, *one, length, where) for one in zip(encoded, said, strict=True)]


def read_answers(
    tokenizer: TextTokenizer, prompt: str, answers: Sequence[str], length: int, framed: Framed, where: str
) -> list[Reading]:
    """A prompt with each of some answers, and the text's end; where one is too long, all lose their prompt's beginning.

    A prompt follows what texts begin with, and where the answer alone is too long, it loses its end.
    """
    try:
        asked = tokenizer.encode(prompt)
        told = [np.append(tokenizer.encode(answer), tokenizer.end_of_text) for answer in answers]
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    room = length - max(map(len, told))  # for what texts begin with and the prompt, as the last token is only told
    framed.count += 1
    framed.cut += len(asked) > room
    begin = np.concatenate([[tokenizer.special("begin")], asked[max(0, len(asked) - max(0, room)) :]])
    readings = []
    for answer, tokens in zip(answers, told, strict=True):
        turns = np.repeat([-1, 0], [len(begin), len(tokens)])
        readings.append(
            _shortened(tokenizer, (np.concatenate([begin, tokens]), turns), [answer], length, where)
        )  # fmt: skip
    return readings


def _shortened(
    tokenizer: TextTokenizer,
    encoded: tuple[NDArray[np.int64], NDArray[np.int64]],
    said: Sequence[str],
    length: int,
    where: str,
) -> Reading:
    tokens, turns = encoded
    if len(tokens) > length + 1:
        tokens, turns = tokens[: length + 1], turns[: length + 1]
        said = [*said[:-1], tokenizer.decode(tokens[turns == len(said) - 1])]
    if not (turns[1:] == len(said) - 1).any():
        raise InputError(
            f"{where}: {len(encoded[0]):,} tokens, of which the model reads {length:,}, and none of the answer is among "
            "them: shorten what is before it"
        )
    return Reading(tokens, turns, tuple(said))


def _without_beginning(tokenizer: TextTokenizer, text: str, excess: int, least: int) -> str:
    """The text without so many tokens, or with its last `least` ones, where it has as many."""
    tokens = tokenizer.encode(text)
    # half of a character is none
    return tokenizer.decode(tokens[min(excess, max(0, len(tokens) - least)) :]).lstrip("\ufffd")


def _last(turns: Sequence[Turn]) -> int:
    """Where the assistant's last turn stands."""
    return max(number for number, turn in enumerate(turns) if turn.role == "assistant")


def _shown(value: Any) -> str:
    return "missing" if value is None else repr(value)[:60]
