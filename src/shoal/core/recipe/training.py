"""How a model is trained, evaluated and saved."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Strict

from shoal.core.recipe.fields import Count, Fraction, Momentum, NonNegative, Positive, PositiveFloat, section


@section
class Train:
    """How long, how much at once, and in which precision."""

    steps: Count = 0
    """Stop after so many optimizer steps (0: no limit)."""
    tokens: Count = 0
    """Stop after so many tokens (0: no limit)."""
    minutes: NonNegative = 0.0
    """Stop after so much training time (0: no limit). The schedule follows whichever budget ends first."""
    epochs: NonNegative = 0.0
    """`finetune`: stop after so many readings of the examples (0: no limit)."""
    global_batch: Positive = 16
    """Sequences per optimizer step over all ranks."""
    micro_batch: Count = 0
    """Sequences per forward pass on one rank (0: all of the rank's share at once)."""
    clip: NonNegative = 1.0
    """Largest global gradient norm (0: no clipping)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the matrix products; weights, gradients and optimizer state stay fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the blocks (`auto`: where a compiler is found)."""
    max_skipped: Count = 3
    """Steps that may be skipped because a loss or gradient was not finite, before the run stops."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What backward computes again instead of having kept it (activation checkpointing): nothing, all but matrix
    products and attention, or all of a block."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""


@section
class Lookahead:
    """Slow weights around the optimizer (Zhang et al. 2019, arXiv:1907.08610)."""

    every: Count = 0
    """Steps between pulls of the slow weights (0: off)."""
    pull: Fraction = 0.5
    """How far the slow weights move towards the fast ones."""


@section
class Optimizer:
    """AdamW for everything, or Muon for the blocks' matrices and AdamW for the rest."""

    kind: Literal["adamw", "muon", "onebit_adam"] = "adamw"
    """The optimizer; `onebit_adam`: AdamW that freezes its variance, and whose momentum travels by `parallel.codec`."""
    onebit_warmup: Positive = 100
    """`onebit_adam`: steps before its variance is frozen, in which gradients travel plain."""
    learning_rate: PositiveFloat = 6e-4
    """Peak learning rate of AdamW."""
    beta1: Momentum = 0.9
    """AdamW's first moment."""
    beta2: Momentum = 0.95
    """AdamW's second moment."""
    epsilon: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    weight_decay: NonNegative = 0.1
    """Decoupled decay of matrices; vectors (norms, biases) are never decayed."""
    embedding_rate: PositiveFloat = 1.0
    """Learning rate of embeddings and output projection, as a multiple of `learning_rate`."""
    muon_learning_rate: PositiveFloat = 0.02
    """Peak learning rate of Muon."""
    muon_momentum: Momentum = 0.95
    """Muon's Nesterov momentum."""
    muon_weight_decay: NonNegative = 0.0
    """Muon's decoupled decay."""
    muon_iterations: Literal[3, 5] = 5
    """Newton–Schulz iterations."""
    muon_row_decay: Momentum = 0.0
    """Running mean of the squared update of each row, by which rows are evened (0: off)."""
    lookahead: Lookahead = field(default_factory=Lookahead)


@section
class Regular:
    """What keeps a model from learning its text by heart (docs/regularisation.md). Norms and biases are never pulled."""

    l1: NonNegative = 0.0
    """Pull of the absolute values of matrices towards zero."""
    l2: NonNegative = 0.0
    """Pull of the squares of matrices; decoupled it adds to `optimizer.weight_decay`, which is the same."""
    decoupled: Annotated[bool, Strict()] = True
    """Pull at the weights themselves, beside the optimizer's step; or, false, through their gradients."""
    label_smoothing: Momentum = 0.0
    """Share of the target's probability that is spread over all tokens."""
    z_loss: NonNegative = 0.0
    """Weight of log² of the softmax's denominator (PaLM: 1e-4)."""
    adversarial: NonNegative = 0.0
    """How far a text's embeddings are pushed to where its loss rises, for a second pass over it: twice the work (0: off)."""
    ema: Momentum = 0.0
    """Decay of a moving average of the weights, which is evaluated and written in their place (0: off)."""


@section
class Schedule:
    """The learning rate over the run, as a share of its peak."""

    kind: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """Decay after the warm-up: cosine, linear, warm-up–stable–decay, or none."""
    warmup: NonNegative = 0.02
    """Steps of warm-up; below 1, a share of the run."""
    decay: Fraction = 0.2
    """`wsd`: share of the run that the final decay takes."""
    final: Fraction = 0.1
    """Learning rate at the end, as a share of the peak."""
    batch_start: Count = 0
    """Sequences of the first steps, of which `train.global_batch` is a multiple, up to which they grow (0: all steps have
    as many). Without `train.micro_batch` this much is computed at once."""
    batch_until: Fraction = 0.25
    """Share of the run's steps or tokens after which the batch has grown."""


@section
class Evaluation:
    """Held-out loss during and after training."""

    every: Count = 0
    """Steps between evaluations (0: only at the end)."""
    sequences: Count = 0
    """Held-out sequences that an evaluation in mid-run reads (0: the whole split)."""
    final_sequences: Count = 0
    """Held-out sequences that the last evaluation reads (0: the whole split)."""
    patience: Count = 0
    """Evaluations without an improvement after which the run stops; its best model is written (0: off)."""
    min_improvement: NonNegative = 0.0
    """By how much an evaluation must be better than the best to count."""
    metric: str = "eval_loss"
    """The figure that `patience` watches: falling where it is a loss (also `eval_loss/CORPUS`) or `bpb`, else rising."""


@section
class Checkpoint:
    """What is saved, to go on from."""

    every: Count = 0
    """Steps between checkpoints (0: only when interrupted and at the end)."""
    keep: Positive = 2
    """Checkpoints kept; older ones are removed."""
