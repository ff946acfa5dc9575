"""What a model learns: one file a task, and an explicit table of them."""

from shoal.tasks.causal import Causal
from shoal.tasks.task import Batch, Task

TASKS: dict[str, type[Causal]] = {"causal": Causal}
"""Name to task, for the recipe's `task`."""

__all__ = ["TASKS", "Batch", "Causal", "Task"]
