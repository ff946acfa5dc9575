"""Whole lines of a file that grows: what is new since the last look, and nothing else, is read.

A half-written last line is left until its end has come. A file that is shorter than it was, another one under the same name,
or one whose bytes before the place reached are not those that were read, begins anew: a run that is resumed or started again
replaces its metrics, and may have caught up before the next look.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

FINGERPRINT = 64
"""Bytes before the place reached by which a file is known again."""

LONGEST = 1 << 20
"""Bytes that are read at once, and that a line may have; a longer one is told as empty."""


@dataclass(frozen=True)
class News:
    """What a look at the file has found."""

    lines: list[tuple[int, bytes]]
    """(offset, text without the line's end)."""
    restarted: bool = False
    """Whether these lines are the first ones of another file: forget what was told before."""
    pending: int = 0
    """Bytes that this look has left."""


@dataclass
class Tail:
    """Reads a file's lines, once each, `longest` bytes a look at most."""

    path: Path
    longest: int = LONGEST
    offset: int = 0
    """Of the first byte that has not been told."""
    bytes_read: int = 0
    _before: bytes = field(default=b"", repr=False)
    _known: tuple[int, ...] = ()
    _too_long_from: int | None = None

    def look(self) -> News:
        """The next whole lines; none where there is no such file, or it can't be read."""
        try:
            with self.path.open("rb", buffering=0) as file:
                return self._look(file)
        except OSError:
            restarted = bool(self._known)
            self._forget()
            return News([], restarted)

    def _look(self, file: BinaryIO) -> News:
        state = os.fstat(file.fileno())
        known = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
        if known == self._known:
            return News([])
        restarted = bool(self._known) and not self._is_same(file, known)
        if restarted:
            self._forget()
        chunk = self._read(file, self.offset, self.longest)
        end = self.offset + len(chunk)
        lines = self._cut(chunk)
        pending = max(0, state.st_size - end)
        # nothing is left to look at until the file changes
        self._known = known if not pending else (*known[:3], -1)
        return News(lines, restarted, pending)

    def _cut(self, chunk: bytes) -> list[tuple[int, bytes]]:
        *whole, rest = chunk.split(b"\n")
        lines = []
        for text in whole:
            start, self._too_long_from = self._too_long_from, None
            lines.append((self.offset, text) if start is None else (start, b""))
            self.offset += len(text) + 1
        if len(rest) == self.longest or (rest and self._too_long_from is not None):
            self._too_long_from = self.offset if self._too_long_from is None else self._too_long_from
            self.offset += len(rest)
        told = len(chunk) - len(rest) if self._too_long_from is None else len(chunk)
        self._before = (self._before + chunk[:told])[-FINGERPRINT:]
        return lines

    def _is_same(self, file: BinaryIO, known: tuple[int, ...]) -> bool:
        if known[:2] != self._known[:2] or known[2] < self.offset:
            return False
        return self._read(file, self.offset - len(self._before), len(self._before)) == self._before

    def _read(self, file: BinaryIO, offset: int, size: int) -> bytes:
        file.seek(offset)
        chunk = file.read(size)
        self.bytes_read += len(chunk)
        return chunk

    def _forget(self) -> None:
        self.offset, self._before, self._known, self._too_long_from = 0, b"", (), None
