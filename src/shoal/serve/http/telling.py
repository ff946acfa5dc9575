"""The texts of a request in the shapes of OpenAI's two interfaces: whole, and as the events of a stream."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from secrets import token_hex
from typing import Any

from shoal.serve.http.replies import (
    FINGERPRINT,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatLogprobs,
    ChatReply,
    ChatTokenLogprob,
    CompletionChoice,
    CompletionLogprobs,
    CompletionReply,
    Delta,
    Ended,
    PromptDetails,
    Reply,
    Shape,
    Usage,
    bytes_of,
    likeliest,
    logprob,
)
from shoal.serve.http.texts import Written
from shoal.serve.request import Finish, Piece, ToldToken


class Telling(ABC):
    """`alternatives`: how many likeliest tokens were asked for beside each token (None: no probabilities at all)."""

    def __init__(self, prefix: str, model: str, alternatives: int | None, with_usage: bool = False) -> None:
        """`with_usage`: the stream ends with how many tokens were used, so its other events say that they don't know."""
        self.alternatives, self.with_usage = alternatives, with_usage
        self.common: dict[str, Any] = {
            "id": prefix + token_hex(12), "created": int(time.time()), "model": model, "system_fingerprint": FINGERPRINT
        }  # fmt: skip

    @property
    def event(self) -> dict[str, Any]:
        """What all events of a stream have."""
        return self.common | ({"usage": None} if self.with_usage else {})

    @abstractmethod
    def opening(self, number: int) -> Iterator[Shape]:
        """Events before a text's own."""

    @abstractmethod
    def events(self, number: int, piece: Piece) -> Iterator[Shape]:
        """What tells a piece of the text of this number."""

    @abstractmethod
    def closing(self, usage: Usage) -> Shape:
        """The event that tells how many tokens were used."""

    @abstractmethod
    def reply(self, texts: Sequence[Written], usage: Usage) -> Shape:
        """All at once."""


class ChatTelling(Telling):
    """Of /v1/chat/completions."""

    def __init__(self, model: str, alternatives: int | None, with_usage: bool = False) -> None:
        super().__init__("chatcmpl-", model, alternatives, with_usage)

    def opening(self, number: int) -> Iterator[Shape]:
        """Who speaks."""
        yield self._chunk(number, Delta(role="assistant", content=""), None, None)

    def events(self, number: int, piece: Piece) -> Iterator[Shape]:
        """The text, if there is some, and the end by itself."""
        if piece.text or piece.told:
            yield self._chunk(number, Delta(content=piece.text), self._logprobs(piece.told), None)
        if piece.finish is not None:
            yield self._chunk(number, Delta(), None, ended(piece.finish))

    def closing(self, usage: Usage) -> Shape:
        """Without choices."""
        return ChatChunk(object="chat.completion.chunk", choices=[], **self.common | {"usage": usage})

    def reply(self, texts: Sequence[Written], usage: Usage) -> Shape:
        """A message each."""
        choices = [
            ChatChoice(
                index=number,
                message=Reply(role="assistant", content=text.text, refusal=None),
                logprobs=self._logprobs(text.told),
                finish_reason=ended(text.finish),
            )
            for number, text in enumerate(texts)
        ]
        return ChatReply(object="chat.completion", choices=choices, usage=usage, **self.common)

    def _chunk(self, number: int, delta: Delta, logprobs: ChatLogprobs | None, finish: Ended) -> ChatChunk:
        choice = ChatChunkChoice(index=number, delta=delta, logprobs=logprobs, finish_reason=finish)
        return ChatChunk(object="chat.completion.chunk", choices=[choice], **self.event)

    def _logprobs(self, told: Sequence[ToldToken]) -> ChatLogprobs | None:
        if self.alternatives is None:
            return None
        content = [
            ChatTokenLogprob(
                token=token.text,
                logprob=logprob(token.log_probability),
                bytes=bytes_of(token.text),
                top_logprobs=likeliest(token.likeliest),
            )
            for token in told
        ]
        return ChatLogprobs(content=content, refusal=None)


class CompletionTelling(Telling):
    """Of /v1/completions; `choices`: of each prompt; `echo`: prompts that their choices begin with."""

    def __init__(self, model: str, alternatives: int | None, choices: int = 1, with_usage: bool = False) -> None:
        super().__init__("cmpl-", model, alternatives, with_usage)
        self.choices = choices
        self.echo: Sequence[str] = ()
        self.places: dict[int, int] = {}
        """How many characters of each text's tokens were told."""

    def opening(self, number: int) -> Iterator[Shape]:
        """The prompt, where it is to be repeated."""
        if self.echo:
            yield self._event(number, self._prompt(number), None, None)

    def events(self, number: int, piece: Piece) -> Iterator[Shape]:
        """The text, and in the last its end."""
        if piece.text or piece.told or piece.finish is not None:
            yield self._event(number, piece.text, self._logprobs(number, piece.told), ended(piece.finish))

    def closing(self, usage: Usage) -> Shape:
        """Without choices."""
        return CompletionReply(object="text_completion", choices=[], **self.common | {"usage": usage})

    def reply(self, texts: Sequence[Written], usage: Usage) -> Shape:
        """A text each."""
        choices = [
            CompletionChoice(
                index=number,
                text=self._prompt(number) + text.text,
                logprobs=self._logprobs(number, text.told),
                finish_reason=ended(text.finish),
            )
            for number, text in enumerate(texts)
        ]
        return CompletionReply(object="text_completion", choices=choices, usage=usage, **self.common)

    def _prompt(self, number: int) -> str:
        return self.echo[number // self.choices] if self.echo else ""

    def _event(self, number: int, text: str, logprobs: CompletionLogprobs | None, finish: Ended) -> CompletionReply:
        choice = CompletionChoice(index=number, text=text, logprobs=logprobs, finish_reason=finish)
        return CompletionReply(object="text_completion", choices=[choice], **self.event)

    def _logprobs(self, number: int, told: Sequence[ToldToken]) -> CompletionLogprobs | None:
        if self.alternatives is None:
            return None
        offsets = []
        for token in told:
            offsets.append(self.places.get(number, 0))
            self.places[number] = offsets[-1] + len(token.text)
        best = [{text: logprob(value) for _, text, value in token.likeliest} for token in told]
        return CompletionLogprobs(
            tokens=[token.text for token in told],
            token_logprobs=[logprob(token.log_probability) for token in told],
            top_logprobs=best if self.alternatives else None,
            text_offset=offsets,
        )


def ended(finish: Finish | None) -> Ended:
    """Why a text ended, as OpenAI calls it."""
    return finish if finish in ("stop", "length") else None


def usage_of(prompts: Sequence[Sequence[int]], texts: Sequence[Written]) -> Usage:
    """Prompts count once, whatever the number of choices, and so do those of their tokens that were there before."""
    choices = max(1, len(texts) // len(prompts))
    read, written = sum(map(len, prompts)), sum(text.tokens for text in texts)
    reused = sum(text.reused for text in texts[::choices])
    return Usage(
        prompt_tokens=read,
        completion_tokens=written,
        total_tokens=read + written,
        prompt_tokens_details=PromptDetails(cached_tokens=reused),
    )
