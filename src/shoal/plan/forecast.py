"""From a rehearsal to the whole run: counted, multiplied, added up.

    total = start + first + Σ steps × (one micro-batch + further ones + meeting) + steps × between
          + evaluations × (each + its batches) + saves + end

A budget in minutes ends the training by the clock, which runs from the first step on, evaluations in mid-run included.
"""

from dataclasses import dataclass
from typing import Any

from shoal.core.recipe import Recipe
from shoal.data.batch_sizes import BatchSizes
from shoal.plan.network import Meeting, compute_of
from shoal.plan.rehearsal import Rehearsal, evaluation_batches, passes

COPY = 2e9
"""Bytes a second that a checkpoint is copied with, before training goes on."""

MAPPED = 65_536
"""Bytes of the corpus that reading one sequence maps into memory: the kernel maps what is around it too."""


@dataclass(frozen=True)
class Shape:
    """What is counted rather than measured.

    `steps`: of the run, None where only minutes end it; `tokens_per_row`: real ones, on average; `held_out`: rows of each
    corpus's; `text_bytes`: of the token files that are trained on; `flops`: of a token.
    """

    sizes: BatchSizes
    steps: int | None
    tokens_per_row: float
    data_ranks: int
    at_once: int
    held_out: tuple[int, ...]
    text_bytes: int
    flops: float
    parameters: int


@dataclass(frozen=True)
class Forecast:
    """What a run will take, in seconds, bytes and counts; `memory` of a rank, `disk` at the end, `disk_peak` at most."""

    steps: int
    tokens: int
    step: float
    tokens_per_second: float
    mfu: float
    start: float
    training: float
    evaluations: float
    end: float
    memory: int
    disk: int
    disk_peak: int
    meeting: Meeting

    @property
    def total(self) -> float:
        """From the command to its return."""
        return self.start + self.training + self.evaluations + self.end


def foretell(recipe: Recipe, shape: Shape, rehearsal: Rehearsal, meeting: Meeting) -> Forecast:
    """The run of a recipe that was rehearsed."""
    every, saves = recipe.evaluation.every, recipe.checkpoint.every
    copying = rehearsal.checkpoint / COPY
    middle = _evaluation(shape, rehearsal, recipe.evaluation.sequences)
    steps, training, evaluations = shape.steps or 0, 0.0, 0.0
    if shape.steps is not None:
        training = rehearsal.first + _steps_seconds(shape, rehearsal, meeting, steps)
        training += copying * ((steps - 1) // saves if saves else 0)
        evaluations = middle * ((steps - 1) // every if every else 0)
    limit = 60 * recipe.train.minutes
    if limit and (shape.steps is None or training + evaluations > limit):
        often = step_of(shape, rehearsal, meeting, shape.sizes.largest) + rehearsal.between
        often += (middle / every if every else 0.0) + (copying / saves if saves else 0.0)
        steps = 1 + max(0, int((limit - rehearsal.first) / often))
        evaluations = middle * ((steps - 1) // every if every else 0)
        training = max(limit, rehearsal.first) - evaluations
    step = step_of(shape, rehearsal, meeting, shape.sizes.largest)
    speed = shape.sizes.largest * shape.tokens_per_row / step
    last = _evaluation(shape, rehearsal, recipe.evaluation.final_sequences)
    kept = min(recipe.checkpoint.keep, 1 + (steps - 1) // saves if saves else 1)
    read = shape.sizes.position_after(steps)
    return Forecast(
        steps,
        round(read * shape.tokens_per_row),
        step,
        speed,
        speed * shape.flops / rehearsal.peak_flops,
        rehearsal.start,
        training,
        evaluations + last,
        rehearsal.end,
        rehearsal.memory + _mapped(shape, read) - _mapped(shape, rehearsal.sequences),
        kept * rehearsal.checkpoint + rehearsal.model,
        (kept + (kept > 1 or bool(saves))) * rehearsal.checkpoint + rehearsal.model,
        meeting,
    )


def step_of(shape: Shape, rehearsal: Rehearsal, meeting: Meeting, batch: int) -> float:
    """Seconds of a step of so many sequences."""
    return compute_of(rehearsal, passes(batch, shape.data_ranks, shape.at_once)).total + meeting.seconds


def _steps_seconds(shape: Shape, rehearsal: Rehearsal, meeting: Meeting, steps: int) -> float:
    stages = [stage for stage in shape.sizes.stages if stage.step < steps]
    ends = [stage.step for stage in stages[1:]] + [steps]
    return sum(
        (end - stage.step) * (step_of(shape, rehearsal, meeting, stage.batch) + rehearsal.between)
        for stage, end in zip(stages, ends, strict=True)
    )


def _evaluation(shape: Shape, rehearsal: Rehearsal, limit: int) -> float:
    batches = evaluation_batches(shape.held_out, limit, shape.data_ranks * shape.at_once)
    return rehearsal.evaluation + rehearsal.batch * batches


def _mapped(shape: Shape, sequences: int) -> int:
    return min(shape.text_bytes, sequences * MAPPED)


def numbers(forecast: Forecast) -> dict[str, Any]:
    """All of it, for JSON."""
    meeting = forecast.meeting
    return {
        "steps": forecast.steps,
        "tokens": forecast.tokens,
        "step_seconds": forecast.step,
        "tokens_per_second": forecast.tokens_per_second,
        "mfu": forecast.mfu,
        "start_seconds": forecast.start,
        "training_seconds": forecast.training,
        "evaluation_seconds": forecast.evaluations,
        "end_seconds": forecast.end,
        "total_seconds": forecast.total,
        "memory_bytes": forecast.memory,
        "disk_bytes": forecast.disk,
        "disk_peak_bytes": forecast.disk_peak,
        "sync": meeting.sync,
        "codec": meeting.codec,
        "wire_bytes": meeting.bytes,
        "wire_seconds": meeting.seconds,
        "reasons": list(meeting.reasons),
    }
