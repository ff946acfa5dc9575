"""The Hugging Face layout: a folder that `transformers` loads without a network, in the type that is asked for.

Shoal's own folders are such ones already, in fp32. What exporting adds: half the size, adapters merged, families that
Shoal reads as another (RoBERTa, DistilBERT) as that one, and nothing of the run around the model.
"""

from pathlib import Path

import torch

from shoal.core.errors import InputError
from shoal.core.model_directory import write_model_directory
from shoal.export.subject import Subject
from shoal.models import hugging_face

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

KEPT = (
    "bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "problem_type", "shoal_task", "infill_layout",
)  # fmt: skip
"""Keys of `config.json` that the weights don't tell."""


def write_hugging_face(folder: Path, subject: Subject, dtype: str = "fp32") -> None:
    """Write `config.json`, weights, tokenizer and card; `InputError` for a model that no family computes."""
    try:
        config = hugging_face.config_to_hugging_face(subject.model.config, subject.tokenizer.end_of_text)
    except ValueError as error:
        raise InputError(f"{subject.name}: can't be written in the Hugging Face layout: {error}") from None
    config |= {key: subject.said[key] for key in KEPT if key in subject.said}
    config["dtype"] = str(DTYPES[dtype]).removeprefix("torch.")
    weights = hugging_face.weights_to_hugging_face(subject.model)
    converted = {name: value.to(DTYPES[dtype]) for name, value in weights.items()}
    write_model_directory(folder, config, converted, subject.tokenizer.write, subject.card or f"# {subject.name}\n")
