"""Texts of a scheduler, all at once."""

from collections.abc import Sequence
from typing import Any

from shoal.serve.generation import LanguageModel
from shoal.serve.request import Piece, Request
from shoal.serve.runner import TorchRunner
from shoal.serve.scheduler import Scheduler


def scheduler_of(language: LanguageModel, slots: int = 3, capacity: int = 1000, **options: Any) -> Scheduler:
    """Over the training model itself."""
    return Scheduler(TorchRunner(language.model, slots, capacity), language.tokenizer, language.ends, **options)


def write_all(scheduler: Scheduler, requests: Sequence[Request]) -> list[list[Piece]]:
    """The pieces of each request, all handed in before the first step."""
    pieces: list[list[Piece]] = [[] for _ in requests]
    for request, told in zip(requests, pieces, strict=True):
        scheduler.add(scheduler.prepare(request, told.append))
    finish(scheduler)
    return pieces


def finish(scheduler: Scheduler, steps: int = 10_000) -> None:
    """Step until nothing is left to do."""
    while scheduler.busy:
        scheduler.step()
        steps -= 1
        assert steps, "it goes on for ever"


def joined(pieces: Sequence[Piece]) -> str:
    """The text; its last piece, and that alone, says why it ended."""
    assert [piece.finish is not None for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    return "".join(piece.text for piece in pieces)
