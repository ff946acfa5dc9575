"""README.md of a fine-tuned model's folder."""

from typing import Any

from shoal.core.recipe import Recipe
from shoal.models.hugging_face.heads import ENDINGS
from shoal.train.telemetry import describe_metrics

PIPELINES = {
    "classify": "text-classification", "tag": "token-classification", "answer": "question-answering",
    "translate": "translation",
}  # fmt: skip
"""A task's pipeline on the hub."""


def finetuned_card(recipe: Recipe, config: dict[str, Any], result: dict[str, Any]) -> str:
    """The card, with the hub's metadata on top."""
    labels = config.get("id2label", {})
    named = f"| labels | {', '.join(map(str, labels.values()))} |\n" if 0 < len(labels) <= 50 else ""
    test = own = ""
    if "test_loss" in result:
        test = f"| test | loss {result['test_loss']:.4f}{describe_metrics(result, digits=4, split='test')} |\n"
    if "shoal_head" in config and not config["architectures"][0].endswith(tuple(ENDINGS.values())):
        pooling = config["shoal_head"]["pooling"]
        own = f"\n`transformers` has no place for a head over {pooling} pooling: it reads the model without it.\n"
    best = f"; the best, of step {result['best']['best_step']:,}" if result["best"] else ""
    return f"""---
library_name: {"shoal" if own else "transformers"}
pipeline_tag: {PIPELINES.get(recipe.task, "text-generation")}
tags: [shoal]
---
# {recipe.name}

A model of {result["parameters"]:,} parameters ({config["architectures"][0]}), fine-tuned with Shoal for the task
`{recipe.task}` from {recipe.model.init_from or "random weights"}.

| | |
| --- | --- |
| examples | {", ".join(recipe.examples.train)} |
{named}| trained | {recipe.tuning.what} |
| held out | loss {result["eval_loss"]:.4f}{describe_metrics(result, digits=4)} |
{test}| training | {result["steps"]:,} steps, {result["epochs"]:.2f} epochs in {result["seconds"]:.0f} s{best} |

`shoal evaluate PATH --data FILE` gives its figures on other examples.
{own}"""
