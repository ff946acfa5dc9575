"""What is asked of an engine, and what it tells: the seam between what computes texts and what shows them.

A `Request` is handed to an `Engine` with a function that is told the text, `Piece` by `Piece`, from the engine's thread. The
last piece has a `finish`. A text that nobody waits for any more is cancelled by its `Ticket`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from shoal.core.errors import ShoalError
from shoal.serve.sampling import Sampling


class FullError(ShoalError):
    """As many requests wait as may."""


class ClosedError(FullError):
    """The engine is being closed."""


Finish = Literal["stop", "length", "cancelled", "failed"]
"""Why a text ended: an end-of-text token or stop string; as many tokens as asked, or the context is full; its ticket was
cancelled; the engine could not go on (the piece's `text` says why)."""


@dataclass(frozen=True)
class Constraint:
    """What a text must be: of a JSON schema, a regular expression or a Lark grammar."""

    kind: Literal["json_schema", "regex", "grammar"]
    what: Any


@dataclass(frozen=True)
class Request:
    """A prompt, as tokens, and how it is to go on. `InputError` on submission for what can't be served."""

    prompt: tuple[int, ...]
    tokens: int
    """How many are written, at most."""
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    """The same seed gives the same text, whatever else is computed at the time."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""
    alternatives: int | None = None
    """Tell each token's logarithmic probability, and this many likeliest tokens' (None: neither)."""
    constraint: Constraint | None = None
    beams: int = 1
    """Above 1: the likeliest text that a search for it keeps up with so many beginnings, told when it is found, is written;
    nothing is drawn then, and neither alternatives, a constraint nor a repetition penalty can be asked for."""
    length_penalty: float = 1.0
    """Of such a search: what a text's logarithmic probability is divided by is its length to this power."""


@dataclass(frozen=True)
class ToldToken:
    """A token of a text; logarithmic probabilities are the model's own, before temperature and the like."""

    token: int
    text: str
    log_probability: float
    likeliest: tuple[tuple[int, str, float], ...]
    """(token, its text, its logarithmic probability), best first."""


class Piece(NamedTuple):
    """What a text goes on with: whole characters, none of a stop string."""

    text: str
    tokens: int
    """Tokens written so far."""
    told: tuple[ToldToken, ...] = ()
    """The piece's tokens, where a request asks for them."""
    finish: Finish | None = None
    reused: int = 0
    """Tokens of the prompt that had been computed before, for another request (with the first piece)."""


class Ticket(Protocol):
    """A request that was taken in."""

    def cancel(self) -> None:
        """Give up; harmless when the text has ended. The last piece says `cancelled`."""


class Engine(Protocol):
    """Computes texts of several requests at once, which join and leave between tokens."""

    def submit(self, request: Request, tell: Callable[[Piece], None]) -> Ticket:
        """Take a request in; it waits while all slots are taken.

        `InputError`: it can't be served; `FullError`: too many wait already.
        """

    @property
    def running(self) -> int:
        """Requests that hold a slot."""

    @property
    def waiting(self) -> int:
        """Requests that wait for one."""

    def close(self, finish: bool = True) -> None:
        """Take in nothing more; end when all is said (`finish`), or at once."""
