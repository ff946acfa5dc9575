"""The folder in which a pre-trained model is written: weights, configuration, tokenizer, and a card that tells of it."""

from pathlib import Path
from typing import Any, Literal

from shoal.core.errors import InputError
from shoal.core.model_directory import write_model_directory
from shoal.core.recipe import Recipe
from shoal.data.shards import Corpus
from shoal.data.tokenizer import read_tokenizer
from shoal.models import hugging_face
from shoal.models.transformer import Transformer
from shoal.train.telemetry import describe_metrics


def write_pretrained(folder: Path, recipe: Recipe, corpus: Corpus, model: Transformer, result: dict[str, Any]) -> None:
    """Write the model of a run on the corpus, whose tokenizer it gets."""
    try:
        config = hugging_face.config_to_hugging_face(model.config, corpus.end_of_text)
    except ValueError as error:
        raise InputError(f"the model can't be written in the Hugging Face layout: {error}") from None
    if recipe.task == "infill":
        config["infill_layout"] = infill_layout(recipe)
    weights = hugging_face.weights_to_hugging_face(model)
    tokenizer = read_tokenizer(corpus.tokenizer_path)
    write_model_directory(folder, config, weights, tokenizer.write, model_card(recipe, config, result))


def infill_layout(recipe: Recipe) -> Literal["prefix first", "suffix first", "spans"]:
    """How a model that fills in is to be asked; it stands in `config.json`."""
    if recipe.infill.form == "spans":
        return "spans"
    return "suffix first" if recipe.infill.suffix_first == 1 else "prefix first"


_USES = {
    "causal": ("text-generation", "AutoModelForCausalLM", '--prompt "…"', "it continues text in its manner"),
    "masked": ("fill-mask", "AutoModelForMaskedLM", '--prompt "… [MASK] …"', "it finds words that are masked in such text"),
    "infill": ("text-generation", "AutoModelForCausalLM", '--prompt "… [MASK] …"', "it fills blanks in such text"),
}
"""A task's pipeline on the hub, its class, how to ask the model, and what it does."""


def model_card(recipe: Recipe, config: dict[str, Any], result: dict[str, Any]) -> str:
    """README.md of the model's folder, with the hub's metadata on top."""
    pipeline, loader, asking, does = _USES[recipe.task]
    return f"""---
library_name: transformers
pipeline_tag: {pipeline}
tags: [shoal]
---
# {recipe.name}

A language model of {result["parameters"]:,} parameters ({config["architectures"][0]}), trained {_since(recipe)} with Shoal.

| | |
| --- | --- |
| training text | {", ".join(recipe.data.sources)} |
| tokens seen | {result["tokens"]:,} ({result["epochs"]:.2f} epochs) |
| held-out loss | {result["eval_loss"]:.4f} nats a target{describe_metrics(result, digits=4)} |
| context | {_context(config)} tokens |
| training | {result["steps"]:,} steps in {result["seconds"]:.0f} s{_which(recipe, result)} |
| machine | {result["world_size"]} rank(s) × {result["threads"]} thread(s), {result["machine"]["cpu"]} |

```python
from transformers import {loader}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = {loader}.from_pretrained("PATH")
```

or `shoal generate PATH {asking}`. The model learned from this text alone: {does}, and knows nothing else.
"""


def _since(recipe: Recipe) -> str:
    return f"further, from {recipe.model.init_from}," if recipe.model.init_from else "from scratch"


def _which(recipe: Recipe, result: dict[str, Any]) -> str:
    """Which of a run's weights these are, where they are not the last."""
    best = f"; the best, of step {result['best']['best_step']:,}" if result["best"] else ""
    return best + (f"; a moving average of the weights ({recipe.regular.ema})" if recipe.regular.ema else "")


def _context(config: dict[str, Any]) -> int:
    """Longest sequence, under whichever name the family uses."""
    return config.get("n_positions") or config["max_position_embeddings"]
