"""A model's folder in the Hugging Face layout, as files: `config.json`, `model.safetensors`, tokenizer, model card; and an
adapter's, `adapter_config.json` and `adapter_model.safetensors`.

What the numbers mean is for `models.hugging_face`; here they are only read and written, whole or not at all.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from shoal.core.errors import InputError
from shoal.core.files import make_folder, read_json, remove_folder, sync_folder, write_json, write_text
from shoal.core.tensors import read_names, read_tensors, write_tensors


def write_model_directory(
    directory: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    write_tokenizer: Callable[[Path], None],
    card: str,
) -> None:
    """Replace `directory` by a complete model folder; `write_tokenizer` adds the tokenizer's files to it."""
    temporary = directory.with_name(f".{directory.name}.tmp")
    remove_folder(temporary)
    make_folder(temporary)
    try:
        write_tensors(temporary / "model.safetensors", weights)
        write_json(temporary / "config.json", config)
        if continues(config):
            end = config.get("eos_token_id")
            write_json(temporary / "generation_config.json", {"do_sample": True, "eos_token_id": end, "pad_token_id": end})
        write_tokenizer(temporary)
        write_text(temporary / "README.md", card)
    except BaseException:
        remove_folder(temporary)
        raise
    remove_folder(directory)
    temporary.rename(directory)
    sync_folder(directory.parent)


def continues(config: Mapping[str, Any]) -> bool:
    """Whether the model goes on with a text, as decoders do; encoders fill in, or sum up."""
    return all(name.endswith(("ForCausalLM", "LMHeadModel")) for name in config.get("architectures", ()))


def write_adapter_directory(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Replace `directory` by an adapter's folder."""
    temporary = directory.with_name(f".{directory.name}.tmp")
    remove_folder(temporary)
    write_tensors(temporary / "adapter_model.safetensors", tensors)
    write_json(temporary / "adapter_config.json", config)
    remove_folder(directory)
    temporary.rename(directory)
    sync_folder(directory.parent)


def read_adapter_directory(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(content of adapter_config.json, tensors); `InputError` says what is missing or damaged."""
    if not _is_adapter(directory):
        raise InputError(f"{directory}: not an adapter's folder, it has no adapter_config.json")
    if not (directory / "adapter_model.safetensors").exists():
        raise InputError(
            f"{directory}: has no adapter_model.safetensors; other formats (adapter_model.bin) are pickles, which Shoal "
            "does not read"
        )
    return _read_mapping(directory / "adapter_config.json"), read_tensors(directory / "adapter_model.safetensors")


def adapter_of(directory: Path) -> Path | None:
    """The folder itself, where it is an adapter's and no model's."""
    return directory if _is_adapter(directory) and not (directory / "config.json").exists() else None


def _is_adapter(directory: Path) -> bool:
    return (directory / "adapter_config.json").exists()


def _base_of(adapter: Path) -> Path:
    """The folder of the model that an adapter was made for; `InputError` where there is none."""
    said = _read_mapping(adapter / "adapter_config.json").get("base_model_name_or_path")
    for base in (Path(str(said)).expanduser(), adapter / str(said)):
        if said and (base / "config.json").exists():
            return base
    raise InputError(
        f"{adapter}: an adapter, of the model '{said}', which is no folder here; name the model's folder, and this as its "
        f"adapter: --model.init_from DIR --model.adapter {adapter}"
    )


def find_model_directory(directory: Path) -> Path:
    """The model's folder: the one given, the one inside a run's folder, or the one that an adapter was made for."""
    if adapter_of(directory) is not None:
        return _base_of(directory)
    return directory / "model" if (directory / "model" / "config.json").exists() else directory


def read_model_directory(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(content of config.json, weights); `InputError` says what is missing or damaged."""
    config, files = _read_outline(directory)
    return config, {name: value for file in files for name, value in read_tensors(file).items()}


def read_model_names(directory: Path) -> tuple[dict[str, Any], set[str]]:
    """(content of config.json, names of the weights, which stay on disk); `InputError` as `read_model_directory`."""
    config, files = _read_outline(directory)
    return config, {name for file in files for name in read_names(file)}


def _read_outline(directory: Path) -> tuple[dict[str, Any], list[Path]]:
    """(content of config.json, the files of weights)."""
    directory = find_model_directory(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such model folder")
    if not (directory / "config.json").exists():
        raise InputError(f"{directory}: not a model folder, it has no config.json")
    config = _read_mapping(directory / "config.json")
    index = directory / "model.safetensors.index.json"
    if index.exists():
        weight_map = _read_mapping(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise InputError(f"{index}: has no 'weight_map', which says in which file a tensor lies")
        names = sorted(set(map(str, weight_map.values())))
    elif (directory / "model.safetensors").exists():
        names = ["model.safetensors"]
    else:
        raise InputError(
            f"{directory}: has no model.safetensors; weights in other formats (pytorch_model.bin) are pickles, "
            "which Shoal does not read"
        )
    return config, [directory / name for name in names]


def _read_mapping(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object; the file is damaged or of another kind")
    return content
