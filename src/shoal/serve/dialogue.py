"""What was said so far, and as much of it as a model can read: a dialogue by a chat template, or one text that goes on.

Both are asked the same: the user says something, `prompt` gives the tokens that the model reads, and its answer is told.
What doesn't fit is left out from the beginning, whole exchanges of a dialogue, a text's first tokens, so that an answer
always has some room. More than must be is left out at once: the next prompts then begin alike, and only what is new is read.
"""

from typing import Any, Protocol

from shoal.core.errors import InputError
from shoal.data.chat_template import ChatTemplate, Turn
from shoal.data.tokenizer import TextTokenizer

ROOM = 4
"""A prompt leaves one of so many parts of the context to the answer, where that may be as long."""
KEPT = 0.75
"""How much of the longest prompt is kept where there is more."""


class History(Protocol):
    """What was said."""

    @property
    def cut(self) -> bool:
        """Whether the last prompt left out what came first."""

    def say(self, text: str) -> None:
        """What the user says. `InputError` where there is nothing to answer."""

    def tell(self, text: str) -> None:
        """What the model answers."""

    def take_back(self) -> None:
        """Forget what the user said last, which was not answered."""

    def prompt(self, answer: int) -> list[int]:
        """The tokens to go on from, for an answer of up to so many. `InputError` for what can't be read."""

    def reset(self) -> None:
        """Begin anew."""

    def row(self) -> dict[str, Any]:
        """All of it, as a row of examples or of a corpus has it."""


class Dialogue:
    """Turns, laid out by a chat template."""

    def __init__(self, template: ChatTemplate, context: int, system: str = "") -> None:
        """`context`: tokens that the model reads, the answer's included. `InputError` as `set_system`."""
        self.template, self.context = template, context
        self._begin = 0
        self.turns: list[Turn] = []
        self.system: list[Turn] = []
        self.set_system(system)

    @property
    def cut(self) -> bool:
        """As `History.cut`."""
        return self._begin > 0

    def set_system(self, text: str) -> None:
        """What the model is told before all else; `InputError` where the template knows no such thing."""
        system = [Turn("system", text)] if text else []
        self.template.prompt([*system, Turn("user", "a")], "the system prompt")
        self.system = system

    def say(self, text: str) -> None:
        """As `History.say`."""
        if not text.strip():
            raise InputError("an empty message, which has no answer")
        self.turns.append(Turn("user", text))

    def tell(self, text: str) -> None:
        """As `History.tell`."""
        self.turns.append(Turn("assistant", text))

    def take_back(self) -> None:
        """As `History.take_back`."""
        self.turns.pop()

    def prompt(self, answer: int) -> list[int]:
        """As `History.prompt`."""
        most, last = _most(self.context, answer), len(self.turns) - 1
        self._begin = min(self._begin, last)  # turns may have been taken back
        tokens = self._tokens()
        if len(tokens) > most:
            while self._begin < last and len(tokens) > KEPT * most:
                self._begin += 2  # a question and its answer
                tokens = self._tokens()
        if len(tokens) >= self.context:
            raise InputError(
                f"the message has {len(tokens):,} tokens with what belongs to it, and the model reads {self.context:,}, its "
                "answer included: shorten it"
            )
        return tokens

    def reset(self) -> None:
        """As `History.reset`; the system prompt stays."""
        self.turns.clear()
        self._begin = 0

    def row(self) -> dict[str, Any]:
        """As `History.row`."""
        return {"messages": [{"role": turn.role, "content": turn.content} for turn in (*self.system, *self.turns)]}

    def _tokens(self) -> list[int]:
        ids: list[int] = self.template.prompt([*self.system, *self.turns[self._begin :]], "the conversation").tolist()
        return ids


class Continuation:
    """One text, on which user and model write by turns; what the user adds begins on a line of its own."""

    def __init__(self, tokenizer: TextTokenizer, context: int) -> None:
        """`context`: as of `Dialogue`."""
        self.tokenizer, self.context = tokenizer, context
        self._begin = 0
        self.parts: list[str] = []

    @property
    def cut(self) -> bool:
        """As `History.cut`."""
        return self._begin > 0

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.parts)

    def say(self, text: str) -> None:
        """As `History.say`; nothing lets the model go on."""
        if not text and not self.parts:
            raise InputError("an empty text: give it a beginning, with which the model goes on")
        begun = text and self.parts and not self.text.endswith("\n")
        self.parts.append("\n" + text if begun else text)

    def tell(self, text: str) -> None:
        """As `History.tell`."""
        self.parts.append(text)

    def take_back(self) -> None:
        """As `History.take_back`."""
        self.parts.pop()

    def prompt(self, answer: int) -> list[int]:
        """As `History.prompt`."""
        # what has no tokens is a text's beginning
        tokens: list[int] = self.tokenizer.encode(self.text).tolist() or [self.tokenizer.end_of_text]
        most = _most(self.context, answer)
        self._begin = min(self._begin, len(tokens) - 1)  # part of the text may have been taken back
        if len(tokens) - self._begin > most:
            self._begin = len(tokens) - max(1, int(KEPT * most))
        return tokens[self._begin :]

    def reset(self) -> None:
        """As `History.reset`."""
        self.parts.clear()
        self._begin = 0

    def row(self) -> dict[str, Any]:
        """As `History.row`."""
        return {"text": self.text}


def _most(context: int, answer: int) -> int:
    """Tokens that a prompt has, so that there is room for an answer, or for the beginning of a long one."""
    return max(1, context - min(answer, context // ROOM))
