"""What `metrics.jsonl` tells, as plots: one list, from which a run's report and the board both draw."""

from dataclasses import dataclass

FALLING = ("loss", "bpb")
"""How the names of figures end that are better when they are lower, but for the corpus of a mixture (`eval_loss/NAME`)."""


def is_better_lower(figure: str) -> bool:
    """Whether less of a figure of an evaluation is better."""
    return figure.partition("/")[0].endswith(FALLING)


@dataclass(frozen=True)
class Line:
    """A key of the records, its name in the plot, and what its values are multiplied by."""

    name: str
    key: str
    scale: float = 1.0


@dataclass(frozen=True)
class Plot:
    """Lines over the run; `from_zero`: the value axis begins there, and single peaks may leave it."""

    title: str
    lines: tuple[Line, ...]
    from_zero: bool = False
    noisy: bool = True
    """Whether its values scatter from step to step, so that means of several say more."""
    in_report: bool = False
    """Whether `report.html` has it; the board has all."""


PLOTS = (
    Plot("Loss (nats a token)", (Line("training", "loss"), Line("held out", "eval_loss")), in_report=True),
    Plot("Tokens a second, all ranks", (Line("", "tokens_per_second"),), from_zero=True, in_report=True),
    Plot("Learning rate", (Line("", "lr"),), from_zero=True, noisy=False, in_report=True),
    Plot(
        "Milliseconds a step",
        (
            Line("whole step", "step_seconds", 1e3),
            Line("waiting for ranks", "sync_seconds", 1e3),
            Line("data", "data_seconds", 1e3),
        ),
        from_zero=True,
        in_report=True,
    ),
    Plot("MFU (%)", (Line("", "mfu", 100.0),), from_zero=True),
    Plot("Gradient norm", (Line("", "grad_norm"),)),
    Plot("Sent by the main rank (MB a step)", (Line("", "wire_bytes", 1e-6),), from_zero=True, noisy=False),
    Plot("Peak memory of the main rank (GB)", (Line("", "memory_bytes", 1e-9),), from_zero=True, noisy=False),
)

RANK_PLOTS = (
    Plot("Waiting for ranks, by rank (ms a step)", (Line("", "sync_seconds", 1e3),), from_zero=True),
    Plot("Reading data, by rank (ms a step)", (Line("", "data_seconds", 1e3),), from_zero=True),
    Plot("Sent, by rank (MB a step)", (Line("", "wire_bytes", 1e-6),), from_zero=True),
)
"""One line a rank, of runs whose records tell `ranks`."""
