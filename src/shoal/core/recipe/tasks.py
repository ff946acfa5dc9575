"""What single tasks have to choose, and the samples at the end of a run."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, Strict

from shoal.core.recipe.fields import Fraction, NonNegative, Positive, PositiveFloat, section


@section
class Samples:
    """Text that is generated when training ends."""

    prompts: list[str] = field(default_factory=list)
    """What to continue; where the task is `masked` or `infill`, texts with `[MASK]` where something is to be found."""
    tokens: Positive = 80
    """Length of each."""
    temperature: NonNegative = 0.8
    """0: always the likeliest token."""


@section
class Masked:
    """Task `masked`: which tokens are hidden, and what stands in their place."""

    rate: Fraction = 0.15
    """Share of a row's tokens that are targets."""
    unit: Literal["token", "word", "span"] = "token"
    """What is chosen: single tokens, whole words, or spans of whole words (SpanBERT)."""
    masked: Fraction = 0.8
    """Share of the targets that are read as the mask token."""
    random: Fraction = 0.1
    """Share of the targets that are read as another token; the rest are read as they are."""
    span_end: Annotated[float, Strict(), Field(gt=0, le=1)] = 0.2
    """`span`: chance that a span ends after each of its words."""
    longest_span: Positive = 10
    """`span`: words at most."""
    relation: Literal["none", "next", "order"] = "none"
    """Also tell how the two texts of a row are related: the next sentence (BERT), or the order of two (ALBERT)."""
    relation_weight: NonNegative = 1.0
    """What that counts beside the masked tokens."""


@section
class Infill:
    """Task `infill`: which parts of a document are cut out, and filled in at its end."""

    form: Literal["middle", "spans"] = "middle"
    """Fill in the middle, causally; or corrupted spans after a text that sees itself both ways."""
    rate: Fraction = 0.9
    """Share of the documents that are rewritten; the others are read from left to right."""
    unit: Literal["stretch", "line"] = "stretch"
    """`middle`: what is cut out, any stretch of tokens, or one line."""
    suffix_first: Fraction = 0.5
    """`middle`: share of the rewritten whose suffix comes first."""
    cut: Fraction = 0.15
    """`spans`: share of a document's tokens that is cut out."""
    mean_span: PositiveFloat = 3.0
    """`spans`: tokens in a span, on average."""
    context_weight: NonNegative = 1.0
    """What a target around a blank counts beside one in it (0: only what is filled in is learnt)."""
