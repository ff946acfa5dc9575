"""Models that `transformers` knows and Shoal has no code for: from their folder, and back to its layout."""

from pathlib import Path
from typing import Any

from torch import Tensor

from shoal.core.errors import InputError
from shoal.core.extras import silenced
from shoal.core.files import read_json
from shoal.core.model_directory import read_model_directory
from shoal.models.foreign import Foreign, foreign_config
from shoal.models.hugging_face import FAMILIES, heads
from shoal.models.hugging_face.relatives import RELATIVES


def is_foreign(folder: Path) -> bool:
    """Whether the model of a folder is of a kind that Shoal has no code for."""
    config = folder / "config.json"
    said = read_json(config) if config.exists() else None
    kind = said.get("model_type") if isinstance(said, dict) else None
    return isinstance(kind, str) and kind not in FAMILIES and kind not in RELATIVES


def read_foreign(folder: Path, trust_remote_code: bool = False) -> Foreign:
    """The model, by the Auto classes of `transformers`; code in the folder runs only if it is trusted.

    `InputError` where that can't be had.
    """
    config, weights = read_model_directory(folder)
    own = {name.removeprefix("task_head."): value for name, value in weights.items() if name.startswith("task_head.")}
    try:
        with silenced("transformers"):  # of heads that a folder lacks, or has beside
            theirs, causal = _read_theirs(folder, trust_remote_code)
        shape = foreign_config(theirs.config, causal)
        shape = heads.from_config(config["model_type"], shape, config, weights.keys())
        model = Foreign(shape, theirs)
        if model.task_head is not None:
            model.task_head.load_state_dict(own)
        return model
    except Exception as error:  # the library raises many kinds for a damaged folder
        said = " ".join(str(error).split())
        advice = "; it brings code of its own: --model.trust_remote_code true runs it" if "trust_remote_code" in said else ""
        raise InputError(f"{folder}: neither Shoal nor transformers can read this model: {said}{advice}") from None


def foreign_to_hugging_face(model: Foreign) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config.json, weights): theirs under their own names, and our head's beside."""
    config = model.theirs.config.to_dict()
    weights = {name.removeprefix("theirs."): value.detach().clone() for name, value in model.state_dict().items()}
    architecture = {"architectures": [type(model.theirs).__name__]}
    return config | architecture | heads.to_config(config["model_type"], model.config), weights


def _read_theirs(folder: Path, trust: bool) -> tuple[Any, bool]:
    """(the model, with its projection onto the vocabulary where it is a decoder; whether it is one)."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
    )

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
    if config.is_encoder_decoder:
        raise ValueError(f"'{config.model_type}' is an encoder and a decoder, which Shoal can't fine-tune")
    kind = type(config)
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING and (
        kind not in MODEL_FOR_MASKED_LM_MAPPING or bool(getattr(config, "is_decoder", False))
    )
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust, "dtype": "float32"}
    if not causal:
        return AutoModel.from_pretrained(folder, **options), False
    return AutoModelForCausalLM.from_pretrained(folder, **options), True
