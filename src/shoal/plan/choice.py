"""Which kind of model to fine-tune, and how much of it, for a task's examples on a machine: estimates by rule and formula.

What a way of tuning needs of examples is a rule of thumb: below some dozens a label a head on frozen features is hard to
beat, from some hundreds thin matrices are as good as all weights, beyond that all weights win. Time is operations over the
machine's measured matrix peak: of forward and backward 6 a weight and token, 4 where only thin matrices are trained, 2 where
all but the head is frozen, once for all epochs. Sizes of models are those that their makers publish.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

EFFICIENCY = 0.4
"""Of the matrix peak, which fine-tuning on short texts reaches."""

ADAM_BYTES, KEPT_VALUES, PROCESS_BYTES = 16, 16, 0.45e9
"""A trained weight with its gradient and moments; values a token and layer, in widths, that backward needs; all else."""

SCARCE, SOME = 50, 500
"""Examples a label below which, and up to which, less than all weights should be trained."""

WAYS = ("all", "lora", "frozen")
"""Of training a model: `tuning.what`, from most to least."""

READERS = ("classify", "tag", "answer")
"""Tasks for encoders; the others are for decoders."""


@dataclass(frozen=True)
class Known:
    """A model that is to be had, and the languages it is for (`*`: many). `inner`: weights of its blocks."""

    name: str
    languages: tuple[str, ...]
    weights: float
    inner: float
    layers: int
    dim: int


ENCODERS = (
    Known("sentence-transformers/all-MiniLM-L6-v2", ("en",), 22.7e6, 10.6e6, 6, 384),
    Known("distilbert/distilbert-base-uncased", ("en",), 66e6, 42.5e6, 6, 768),
    Known("google-bert/bert-base-uncased", ("en",), 110e6, 85e6, 12, 768),
    Known("google-bert/bert-base-chinese", ("zh",), 102e6, 85e6, 12, 768),
    Known("distilbert/distilbert-base-multilingual-cased", ("*",), 135e6, 42.5e6, 6, 768),
    Known("FacebookAI/xlm-roberta-base", ("*",), 278e6, 85e6, 12, 768),
)

DECODERS = (
    Known("HuggingFaceTB/SmolLM2-135M", ("en",), 135e6, 106e6, 30, 576),
    Known("Qwen/Qwen3-0.6B-Base", ("*",), 596e6, 440e6, 28, 1024),
)


@dataclass(frozen=True)
class Facts:
    """What the examples are: how many, in which language, how long (in tokens), and with which labels."""

    examples: int
    language: str
    mean_tokens: float
    longest_tokens: int
    labels: Mapping[str, int]

    @property
    def commonest(self) -> float:
        """Share of the commonest label: what guessing it always would reach; 0 without labels."""
        return max(self.labels.values()) / sum(self.labels.values()) if self.labels else 0.0

    @property
    def fewest(self) -> int:
        """Examples of the rarest label; of all, without labels."""
        return min(self.labels.values(), default=self.examples)


@dataclass(frozen=True)
class Option:
    """A model and a way of tuning: seconds, bytes, and whether both are there."""

    model: str
    weights: float
    what: str
    seconds: float
    memory: float
    fits: bool


@dataclass(frozen=True)
class Advice:
    """All options, the one to take (None: none fits), and why, in sentences."""

    options: list[Option]
    taken: Option | None
    reasons: list[str]


def advise(
    task: str, facts: Facts, models: Sequence[Known], peak: float, memory: float, seconds: float, epochs: float
) -> Advice:
    """For a machine of `peak` FLOP/s with `memory` bytes free, and `seconds` to spend."""
    usable = [one for one in models if facts.language in one.languages] or [one for one in models if "*" in one.languages]
    what, why = way_of(task, facts)
    options = [option(one, way, facts, peak, memory, seconds, epochs) for one in usable for way in WAYS]
    # the largest model that can be trained as it should; failing that, less of it
    ways = WAYS[WAYS.index(what) :]
    fitting = [one for one in options if one.fits and one.what in ways]
    taken = max(fitting, key=lambda one: (-ways.index(one.what), one.weights), default=None)
    return Advice(options, taken, [_kind(task), why, *_limits(facts, taken, what)])


def way_of(task: str, facts: Facts) -> tuple[str, str]:
    """(how much to train, why)."""
    count, of = (facts.fewest, "of the rarest label") if facts.labels else (facts.examples, "in all")
    if count < SCARCE:
        return (
            "frozen",
            f"Only {count:,} examples {of}: train a head on a frozen model's features, which can hardly overfit.",
        )
    if count < SOME or task not in READERS:
        return "lora", f"{count:,} examples {of}: train thin matrices (LoRA), which forget less than all weights would."
    return "all", f"{count:,} examples {of} are enough to train all weights, which then does best."


def option(model: Known, what: str, facts: Facts, peak: float, memory: float, seconds: float, epochs: float) -> Option:
    """What one way takes."""
    tokens = facts.examples * facts.mean_tokens
    attention = 2 * model.layers * model.dim * facts.mean_tokens / 6  # beside the weights, in the same unit
    passes = {"frozen": 2.0, "lora": 4.0 * epochs, "all": 6.0 * epochs}[what]
    takes = passes * (model.inner + attention) * tokens / (EFFICIENCY * peak)
    trained = {"frozen": 0.0, "lora": 0.01 * model.weights, "all": model.weights}[what]
    kept = 0.0 if what == "frozen" else 4 * KEPT_VALUES * model.layers * model.dim * 32 * facts.mean_tokens
    needs = PROCESS_BYTES + 4 * model.weights + (ADAM_BYTES - 4) * trained + kept
    return Option(model.name, model.weights, what, takes, needs, needs <= memory and takes <= seconds)


def _kind(task: str) -> str:
    if task in READERS:
        return f"'{task}' reads a text as a whole: take an encoder, which sees both ways."
    return f"'{task}' writes text: take a decoder."


def _limits(facts: Facts, taken: Option | None, wanted: str) -> list[str]:
    told = []
    if facts.labels and facts.commonest > 0.5 + 0.5 / len(facts.labels):
        told.append(
            f"Labels are uneven: guessing the commonest is right in {facts.commonest:.0%}. Watch macro-F1, and try "
            "--classify.weights balanced."
        )
    if facts.longest_tokens > 512:
        told.append(
            f"The longest example has about {facts.longest_tokens:,} tokens; most encoders read 512, and cut the rest."
        )
    if taken is None:
        told.append("Nothing fits the machine and the time: give more of either, or fewer examples (--examples.limit).")
    elif taken.what != wanted:
        told.append(f"'{wanted}' doesn't fit the machine and the time with any of these models; '{taken.what}' does.")
    return told
