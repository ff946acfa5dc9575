"""Which model a recipe's examples are best fine-tuned on, and how much of it, on this machine: measured, and told."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from shoal.core.model_directory import find_model_directory
from shoal.core.recipe import Recipe
from shoal.data.tokenizer import read_tokenizer
from shoal.plan.choice import DECODERS, ENCODERS, READERS, Advice, Facts, Known, advise
from shoal.plan.examples import read_facts
from shoal.plan.resources import device_of, free_memory
from shoal.train.models import read_model
from shoal.train.setup import matrix_peak

USUAL_MINUTES = 60.0
"""For fine-tuning, where the recipe names no `train.minutes`."""


@dataclass(frozen=True)
class Choice:
    """What was advised, and of which examples, on a machine of `peak` FLOP/s with `memory` bytes free."""

    recipe: Recipe
    facts: Facts
    advice: Advice
    peak: float
    memory: int

    @property
    def commands(self) -> list[str]:
        """What to type, one after the other; nothing where nothing fits. A model that isn't here is fetched first."""
        recipe, taken = self.recipe, self.advice.taken
        if taken is None:
            return []
        folder = recipe.model.init_from or short(taken.model)
        fetched = [] if recipe.model.init_from else [f"hf download {taken.model} --local-dir {folder}"]
        given = f"--model {folder} --data {' '.join(recipe.examples.train)}"
        return [*fetched, f"shoal finetune --task {recipe.task} {given} --tuning.what {taken.what}"]

    def numbers(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        advice = self.advice
        return {
            "task": self.recipe.task,
            "examples": asdict(self.facts),
            "matrix_peak_flops": self.peak,
            "memory_free_bytes": self.memory,
            "options": [asdict(one) for one in advice.options],
            "taken": asdict(advice.taken) if advice.taken else None,
            "commands": self.commands,
            "reasons": advice.reasons,
        }


def choose(recipe: Recipe) -> Choice:
    """Look at the recipe's examples and at the machine; of its own model alone, where it names one."""
    own = find_model_directory(Path(recipe.model.init_from)) if recipe.model.init_from else None
    facts = read_facts(recipe, read_tokenizer(own) if own is not None else None)
    known = ENCODERS if recipe.task in READERS else DECODERS
    models = known if own is None else (_known(recipe, facts),)
    peak = matrix_peak(device_of(recipe, 1), recipe.train.precision)
    memory, seconds = free_memory(recipe, 1), 60 * (recipe.train.minutes or USUAL_MINUTES)
    return Choice(
        recipe, facts, advise(recipe.task, facts, models, peak, memory, seconds, recipe.train.epochs or 3.0), peak, memory
    )


def tell(choice: Choice, console: Console) -> None:
    """Show it to people."""
    facts, advice = choice.facts, choice.advice
    labels = f", {len(facts.labels)} labels" if facts.labels else ""
    console.print(
        f"{facts.examples:,} examples in '{facts.language}', about {facts.mean_tokens:.0f} tokens each (longest "
        f"{facts.longest_tokens:,}){labels}; this machine computes {choice.peak / 1e9:,.0f} GFLOP/s\n",
        soft_wrap=True,
    )
    table = Table(Column("model", overflow="fold"), "weights", "trained", "time", "memory", "", box=None)
    for one in advice.options:
        mark = "← take this" if one == advice.taken else "" if one.fits else "does not fit"
        minutes = f"{one.seconds / 60:,.1f} min"
        table.add_row(short(one.model), f"{one.weights / 1e6:,.0f}M", one.what, minutes, f"{one.memory / 1e9:.1f} GB", mark)
    console.print(table)
    for reason in advice.reasons:
        console.print(f"- {reason}", markup=False, soft_wrap=True)
    for number, command in enumerate(choice.commands):
        console.print("" if number else "\n", command, sep="", markup=False, soft_wrap=True)


def short(name: str) -> str:
    """A model's own name, without whose it is, or where it lies."""
    return Path(name).name or name


def _known(recipe: Recipe, facts: Facts) -> Known:
    """The recipe's own model, taken to know the examples' language."""
    model = read_model(recipe.model)
    weights, inner = (sum(part.numel() for part in its.parameters()) for its in (model, model.blocks))
    return Known(recipe.model.init_from, (facts.language,), weights, inner, model.config.layers, model.config.dim)
