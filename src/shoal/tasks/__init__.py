"""What a model learns: one file a task, and an explicit table of them."""

from collections.abc import Callable

from shoal.core.recipe import Recipe
from shoal.data.tokenizer import TextTokenizer
from shoal.tasks.causal import Causal
from shoal.tasks.task import Batch, Task

TASKS: dict[str, Callable[[Recipe, TextTokenizer], Task]] = {"causal": lambda recipe, tokenizer: Causal()}
"""Name, as in the recipe's `task`, to what builds it."""

__all__ = ["TASKS", "Batch", "Causal", "Task"]
