"""Back-translation: texts that say the same in other words, by two models that translate them there and back.

(Sennrich et al. 2016, arXiv:1511.06709; of labelled texts, Xie et al. 2020, arXiv:1904.12848.) On the way there tokens are
drawn among the likeliest, so that a text has several translations; on the way back each model searches as it was trained to.

What is drawn depends on the seed, the text and the variant alone, and texts are translated in the same batches on any number
of ranks, which share these. As it takes long, what was made is kept in the user's cache folder.
"""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from shoal.core.errors import InputError, ShoalError
from shoal.core.extras import silenced
from shoal.core.files import read_json, sha256, write_json
from shoal.core.machine import cache_folder
from shoal.core.model_directory import find_model_directory
from shoal.core.recipe import Recipe
from shoal.core.seeds import generator
from shoal.models.decoding import draw
from shoal.models.transformer import Transformer
from shoal.parallel.wire import Wire
from shoal.parallel.world import World
from shoal.tasks import Translate
from shoal.train.labelled_model import read_labelled_model

TOGETHER = 32
"""Texts that are translated at a time."""

KEPT = 32
"""Files of texts in the cache folder; those that are older go."""


class Translator(Protocol):
    """From one language to another."""

    def translate(self, texts: Sequence[str], random: Sequence[torch.Generator] | None) -> list[str | None]:
        """Each text's translation, None for one that the model can't read whole.

        `random`: of each text, where tokens are drawn and not searched for.
        """
        ...


def back_translated(recipe: Recipe, world: World, texts: Sequence[str]) -> tuple[dict[str, list[str]], str]:
    """(up to `augment.variants` other texts for each, what is to be told); `InputError` for what can't translate."""
    wire, folders = Wire(world), _folders(recipe)
    began = time.perf_counter()
    path = cache_folder() / "translations" / f"{_key(recipe, folders, texts)}.json"
    where = f"kept in {path}"
    there = wire.gather_objects(_kept(path) if world.is_main else None)[0]
    if there is None:
        translators = [read_translator(folder, world.device) for folder in folders]
        mine = _translated(recipe, translators, texts, world)
        there = {text: others for part in wire.gather_objects(mine) for text, others in part.items()}
        if world.is_main:
            try:
                _keep(path, there)
            except (ShoalError, OSError) as error:  # it took long, and is here all the same
                where = f"not kept ({error})"
    count = sum(map(len, there.values()))
    told = f"{count:,} other texts by translation there and back of {len(texts):,}, {where}"
    return there, f"{told} ({time.perf_counter() - began:.1f} s)"


def check_translators(recipe: Recipe) -> None:
    """`InputError` where one of the two folders has no model that translates."""
    for folder in _folders(recipe):
        _check(folder)


def _folders(recipe: Recipe) -> list[Path]:
    settings = recipe.augment
    return [find_model_directory(Path(name)) for name in (settings.translate_there, settings.translate_back)]


def _translated(
    recipe: Recipe, translators: Sequence[Translator], texts: Sequence[str], world: World
) -> dict[str, list[str]]:
    """This rank's share: batches of texts of about one length."""
    there, back = translators
    ordered = sorted(texts, key=lambda text: (len(text), text))
    batches = [ordered[start : start + TOGETHER] for start in range(0, len(ordered), TOGETHER)]
    found: dict[str, list[str]] = {}
    for batch in batches[world.rank :: world.size]:
        found |= {text: [] for text in batch}
        for variant in range(recipe.augment.variants):
            random = [generator(recipe.seed, "translation", _number(text), variant) for text in batch]
            said = zip(batch, there.translate(batch, random), strict=True)
            foreign = {text: other for text, other in said if other and other.strip()}
            returned = zip(foreign, back.translate(list(foreign.values()), None) if foreign else [], strict=True)
            for text, other in returned:
                other = (other or "").strip()
                if other and other not in (text, *found[text]):
                    found[text].append(other)
    return found


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _key(recipe: Recipe, folders: Sequence[Path], texts: Sequence[str]) -> str:
    """A name for what is made: a hash of all that decides it."""
    told = hashlib.sha256(f"{recipe.seed} {recipe.augment.variants} {torch.__version__}".encode())
    for folder in folders:
        files = (file for pattern in ("*.json", "*.safetensors", "*.model", "*.txt") for file in folder.glob(pattern))
        told.update(b"\0".join(f"{file.name} {sha256(file)}".encode() for file in sorted(files)))
    for text in sorted(texts):
        told.update(text.encode() + b"\0")
    return told.hexdigest()[:32]


def _keep(path: Path, there: dict[str, list[str]]) -> None:
    write_json(path, there)
    for old in sorted(path.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
        old.unlink(missing_ok=True)


def _kept(path: Path) -> dict[str, list[str]] | None:
    if not path.exists():
        return None
    path.touch()
    found: dict[str, list[str]] = read_json(path)
    return found


def read_translator(folder: Path, device: torch.device) -> Translator:
    """The model of a folder that translates; `InputError` for any other."""
    if not _check(folder):
        return Theirs(folder, device)
    labelled = read_labelled_model(folder)
    assert isinstance(labelled.task, Translate)
    return Ours(labelled.task, labelled.model.to(device))


def _check(folder: Path) -> bool:
    """Whether the model of a folder that translates is one of ours; `InputError` for one that doesn't translate."""
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    said = config.get("shoal_task") if isinstance(config, dict) else None
    if isinstance(said, dict) and said.get("name") == "translate":
        return True
    if said is None and isinstance(config, dict) and config.get("is_encoder_decoder"):
        return False
    raise InputError(
        f"{folder}: no model that translates; accepted: a run of task 'translate', or the folder of a model that is an "
        "encoder and a decoder and translates in one direction, such as Marian's"
    )


class Ours:
    """A decoder that was fine-tuned for the task `translate`."""

    def __init__(self, task: Translate, model: Transformer) -> None:
        self.task, self.model = task, model

    def translate(self, texts: Sequence[str], random: Sequence[torch.Generator] | None) -> list[str | None]:
        """As `Translator`."""
        sizes = [len(self.task.tokenizer.encode(text)) for text in texts]
        whole = [number for number, size in enumerate(sizes) if size <= self.task.room]
        prompts = [self.task.prompt(texts[number]).tolist() for number in whole]
        chosen = None if random is None else [random[number] for number in whole]
        said: list[str | None] = [None] * len(texts)
        if prompts:
            for number, tokens in zip(whole, self.task.write(self.model, prompts, random=chosen), strict=True):
                said[number] = self.task.text(tokens)
        return said


class Theirs:
    """A model of `transformers` that is an encoder and a decoder."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        try:
            with silenced("transformers"):
                self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
                model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder, local_files_only=True, dtype="float32")
        except Exception as error:  # the library raises many kinds for a damaged folder
            said = " ".join(str(error).split())
            raise InputError(f"{folder}: transformers can't read this model that should translate: {said}") from None
        self.model, self.device = model.to(device).eval(), device
        self.longest: int = getattr(model.config, "max_position_embeddings", None) or self.tokenizer.model_max_length

    @torch.no_grad()
    def translate(self, texts: Sequence[str], random: Sequence[torch.Generator] | None) -> list[str | None]:
        """As `Translator`."""
        sizes = [len(ids) for ids in self.tokenizer(list(texts), verbose=False)["input_ids"]]
        whole = [number for number, size in enumerate(sizes) if size <= self.longest]
        said: list[str | None] = [None] * len(texts)
        if not whole:
            return said
        inputs = self.tokenizer([texts[number] for number in whole], padding=True, return_tensors="pt")
        most = min(2 * max(sizes[number] for number in whole) + 16, self.longest - 1)
        how: dict[str, Any] = {"max_new_tokens": most}
        if random is not None:
            drawn = _Drawn([random[number] for number in whole])
            how |= {"do_sample": False, "num_beams": 1, "logits_processor": [drawn]}
        written = self.model.generate(
            input_ids=inputs["input_ids"].to(self.device), attention_mask=inputs["attention_mask"].to(self.device), **how
        )
        for number, text in zip(whole, self.tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
            said[number] = text
        return said


class _Drawn:
    """Leaves of each row's tokens the one that its generator draws, for `generate`, which takes the likeliest."""

    def __init__(self, random: Sequence[torch.Generator]) -> None:
        self.random = random

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = draw(scores, self.random).to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)
