"""A forecast in words, for people."""

from shoal.plan.advice import Suggestion
from shoal.plan.forecast import Forecast


def rows(forecast: Forecast, parameters: int, ranks: int, machines: int, free: int) -> list[tuple[str, str]]:
    """(what, how much)."""
    here = ranks // machines
    meeting = forecast.meeting
    parts = [
        ("start", forecast.start),
        (f"{forecast.steps:,} steps", forecast.training),
        ("evaluation", forecast.evaluations),
        ("end", forecast.end),
    ]
    lines = [
        ("parameters", f"{parameters / 1e6:,.1f}M"),
        ("memory", f"{size(forecast.memory)} a rank, {size(here * forecast.memory)} of {size(free)} that are free here"),
        (
            "a step",
            f"{seconds(forecast.step)}, {forecast.tokens_per_second:,.0f} tokens/s, {forecast.mfu:.0%} of the matrix peak",
        ),
        ("time", f"{seconds(forecast.total)}: " + ", ".join(f"{name} {seconds(took)}" for name, took in parts)),
        ("tokens", f"{forecast.tokens:,}"),
        ("disk", f"{size(forecast.disk)}, {size(forecast.disk_peak)} at most"),
    ]
    if ranks > 1:
        how = f"sync {meeting.sync}" + (f", {meeting.codec} on the wire" if meeting.codec != "none" else "")
        lines.append(("network", f"{size(meeting.bytes)} by a rank a step ({how}), {seconds(meeting.seconds)} of waiting"))
    return lines


def sentences(recipe: str | None, total: float | None, memory: int, free: int, suggestions: list[Suggestion]) -> str:
    """Whether it fits, and what to do; `recipe`: as it is typed, if it is, `memory`: of all ranks on a machine."""
    if memory <= free:
        tight = " That is nearly all: other programs must not grow." if memory > 0.85 * free else ""
        start = f" Start it with: shoal pretrain {recipe}" if recipe is not None else ""
        return f"It fits, and takes {seconds(total or 0.0)}.{tight}{start}"
    fitting = [one for one in suggestions if one.fits]
    told = f"It does not fit: it takes {size(memory)} of memory, and {size(free)} are free."
    if not fitting:
        return f"{told} Nothing that Shoal could change in it would make it fit on this machine."
    return f"{told} The mildest change that makes it fit: {words(fitting[0])}."


def words(suggestion: Suggestion) -> str:
    """A suggestion as it is typed, and its numbers."""
    keys = " ".join(f"--{key} {value}" for key, value in suggestion.keys.items())
    return f"{keys} ({size(suggestion.memory)} a rank; {suggestion.cost})"


def seconds(value: float) -> str:
    """A time, in units that suit it."""
    if value < 1:
        return f"{1000 * value:.0f} ms"
    if value < 120:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    if value < 7200:
        return f"{value / 60:.1f} min"
    return f"{value / 3600:.1f} h" if value < 172_800 else f"{value / 86_400:.1f} days"


def size(count: float) -> str:
    """Bytes, in units that suit them."""
    for unit, large in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= large:
            return f"{count / large:,.2f} {unit}"
    return f"{count:.0f} B"
