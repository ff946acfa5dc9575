"""How much a server takes on, and how long it waits: what one client may ask of it without hurting the others."""

from dataclasses import dataclass

from shoal.core.errors import InputError

MAY_BE_NOTHING = ("prompt", "tokens", "queue", "event_seconds")


@dataclass(frozen=True)
class Limits:
    """Sizes and times; `InputError` for one that can't be."""

    body: int = 1 << 20
    """Bytes of a request's body (else 413)."""
    prompt: int = 0
    """Tokens of a prompt, or of a text to be summed up or labelled (else 400; 0: the model's context)."""
    tokens: int = 0
    """Tokens that may be asked for in answer (else 400; 0: the model's context)."""
    texts: int = 256
    """Texts of one request: prompts times choices, or inputs (else 400)."""
    queue: int = 64
    """Texts that wait for a slot, or requests that wait for an encoder (else 429)."""
    requests: int = 256
    """Requests that are open at once, whatever they ask (else 503)."""
    seconds: float = 600.0
    """From a request's arrival to the end of its answer (else 503, or an error in the stream)."""
    head_seconds: float = 10.0
    """For a request's headers, from the connection, or the first byte of the next request, on."""
    body_seconds: float = 30.0
    """For a request's body (else 408)."""
    stalled_seconds: float = 60.0
    """For which a client may leave unread what was sent."""
    idle_seconds: float = 60.0
    """For which a connection is kept between requests."""
    event_seconds: float = 0.04
    """Between two events of a stream, at least: what is written meanwhile is told in one."""
    quiet_seconds: float = 15.0
    """For which a stream tells nothing, its text waiting in the queue, before a comment says that it is alive."""
    grace_seconds: float = 120.0
    """For what is running to end, once the server was asked to stop."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name in MAY_BE_NOTHING else 1 if isinstance(value, int) else 1e-3
            if not least <= value < float("inf"):
                raise InputError(f"the limit '{name}' is {value}; accepted: {least} or more")


RETRY_SECONDS = 1
"""What `Retry-After` says: a slot is free again when the shortest running text ends, mostly within a second or so."""
