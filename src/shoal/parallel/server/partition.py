"""Which server holds which part of the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from shoal.core.errors import RecipeError


@dataclass(frozen=True)
class Piece:
    """Elements [start, end) of a parameter, its elements in a row, and where they begin in their server's vector."""

    name: str
    start: int
    end: int
    place: int

    @property
    def within(self) -> slice:
        """Where it lies in the server's vector."""
        return slice(self.place, self.place + self.end - self.start)


@dataclass(frozen=True)
class Portion:
    """What one server holds: its pieces, one after the other in a vector of `length` numbers, the last of them padding."""

    pieces: tuple[Piece, ...]
    length: int


def divide_parameters(sizes: Mapping[str, int], servers: int, whole: bool, multiple: int = 1) -> list[Portion]:
    """A portion for each server, of parameters with so many elements each; lengths are multiples of `multiple`.

    Cut anywhere, portions are equal to one element; `whole` parameters go, the largest first, to the server that has least.
    Raises `RecipeError` when a server would have none.
    """
    spans = _whole_spans(sizes, servers) if whole else _equal_spans(sizes, servers)
    if not all(spans):
        unit = "whole parameters" if whole else "elements"
        raise RecipeError(f"'parallel.server.shards' is {servers}, more than the model has {unit} to divide; give fewer")
    return [_portion(held, multiple) for held in spans]


Spans = list[tuple[str, int, int]]


def _equal_spans(sizes: Mapping[str, int], servers: int) -> list[Spans]:
    total = sum(sizes.values())
    edges = [total * server // servers for server in range(servers + 1)]
    spans: list[Spans] = [[] for _ in range(servers)]
    begin = 0
    for name, size in sizes.items():
        for server, (low, high) in enumerate(pairwise(edges)):
            start, end = max(low, begin), min(high, begin + size)
            if start < end:
                spans[server].append((name, start - begin, end - begin))
        begin += size
    return spans


def _whole_spans(sizes: Mapping[str, int], servers: int) -> list[Spans]:
    loads = [0] * servers
    owner: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        owner[name] = loads.index(min(loads))
        loads[owner[name]] += sizes[name]
    return [[(name, 0, size) for name, size in sizes.items() if owner[name] == server] for server in range(servers)]


def _portion(spans: Spans, multiple: int) -> Portion:
    pieces: list[Piece] = []
    place = 0
    for name, start, end in spans:
        pieces.append(Piece(name, start, end, place))
        place += end - start
    return Portion(tuple(pieces), place + -place % multiple)
