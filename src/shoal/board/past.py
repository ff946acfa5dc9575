"""What a run's metrics have told so far, in bounded room whatever their length."""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from shoal.board.history import History
from shoal.board.records import Record, parse
from shoal.board.tail import LONGEST

RECENT = 50
"""Steps by which speed and time left are told."""

MOST_TOLD = 100
"""Words about slow ranks that are kept, the last ones."""

MOST_FIGURES = 100
"""Figures of evaluations whose best is kept."""

AXES = ("step", "tokens", "seconds")
"""What charts may be drawn over; all rise. `seconds` are those of steps and evaluations, summed up."""


@dataclass(frozen=True)
class Moment:
    """A step, and how far the run had come by then."""

    step: int = 0
    tokens: float = 0.0
    seconds: float = 0.0
    values: dict[str, float] = field(default_factory=dict)


@dataclass
class Past:
    """Takes in a run's records in order."""

    training: History = field(default_factory=History)
    evaluations: History = field(default_factory=History)
    recent: deque[Moment] = field(default_factory=lambda: deque(maxlen=RECENT))
    """The last training steps."""
    step: int = 0
    seconds: float = 0.0
    evaluation_seconds: float = 0.0
    """How long the last evaluation took."""
    diverged: bool = False
    """Whether the last loss is not a finite number."""
    lowest: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Of each figure of evaluations: its lowest value, and the first step that had it."""
    highest: dict[str, tuple[float, int]] = field(default_factory=dict)
    told: deque[str] = field(default_factory=lambda: deque(maxlen=MOST_TOLD))
    """What was said of slow ranks."""
    broken: int = 0
    """Lines that are no records."""

    def take(self, offset: int, line: bytes) -> None:
        """Take in the line that begins at `offset` of its file."""
        record = parse(line)
        if record is None:
            self.broken += 1
            return
        self.seconds += seconds_of(record)
        self.step = max(self.step, record.step)
        self.diverged = record.diverged
        self.told.extend(f"step {record.step:,}: {text}" for text in record.told)
        values = record.values | {"seconds": self.seconds}
        if record.is_evaluation:
            self.evaluations.add(offset, values)
            self.evaluation_seconds = seconds_of(record)
            self._judge(record)
        else:
            self.training.add(offset, values)
            self.recent.append(Moment(record.step, values.get("tokens", 0.0), self.seconds, values))

    @property
    def now(self) -> Moment:
        """The last training step."""
        return self.recent[-1] if self.recent else Moment()

    def recently(self, key: str) -> list[float]:
        """A key's values in the last steps."""
        return [moment.values[key] for moment in self.recent if key in moment.values]

    def _judge(self, record: Record) -> None:
        for figure, value in record.values.items():
            if figure.startswith("eval_") and (figure in self.lowest or len(self.lowest) < MOST_FIGURES):
                if figure not in self.lowest or value < self.lowest[figure][0]:
                    self.lowest[figure] = (value, record.step)
                if figure not in self.highest or value > self.highest[figure][0]:
                    self.highest[figure] = (value, record.step)


def seconds_of(record: Record) -> float:
    """How long it took."""
    return max(0.0, record.values.get("eval_seconds" if record.is_evaluation else "step_seconds", 0.0))


def read_part(path: Path, start: int, end: int, seconds: float, capacity: int) -> History:
    """The training records of a part of a file, from byte `start` to before `end`, read anew; `seconds` passed before it."""
    history = History(capacity)
    with path.open("rb") as file:
        file.seek(start)
        while start < end and (line := file.readline(LONGEST)):
            if (record := parse(line)) is not None:
                seconds += seconds_of(record)
                if not record.is_evaluation:
                    history.add(start, record.values | {"seconds": seconds})
            start += len(line)
    return history
