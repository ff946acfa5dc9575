"""Texts that were translated there and back: what decides them, on how many ranks, and what can't translate."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

from shoal.core.errors import InputError, RecipeError
from shoal.core.files import read_json, write_json
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import build_recipe
from shoal.data.examples.example import Example
from shoal.data.special_tokens import BETWEEN
from shoal.data.tokenizer import TextTokenizer, train_bpe
from shoal.parallel.world import World
from shoal.tasks import Classify
from shoal.train.augmentation import check_augmentation, make_augmentation
from shoal.train.back_translation import Theirs, _translated, back_translated, read_translator
from tests.conftest import fixed_text
from tests.models.shapes import BERT, LLAMA, random_model
from tests.ranks import alone
from tests.serve.languages import write_language_model

TEXTS = sorted({line.lower() for line in fixed_text(6).splitlines()})


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_bpe([fixed_text(100)], 300, [BETWEEN])


@pytest.fixture(scope="module")
def folders(tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two of our decoders that translate, and an encoder with a decoder, all of random weights."""
    folder = tmp_path_factory.mktemp("translators")
    shape = replace(LLAMA, vocabulary=tokenizer.vocabulary, context=160)
    for seed, name in enumerate(("there", "back")):
        write_language_model(folder / name, tokenizer, shape, seed)
        settings = {"prefix": True, "beams": 2, "tokens": 8}
        said = read_json(folder / name / "config.json") | {"shoal_task": {"name": "translate", "settings": settings}}
        write_json(folder / name / "config.json", said)
    torch.manual_seed(3)
    small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 48, "init_std": 0.5}
    end = tokenizer.end_of_text
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"), end)
    vocabulary = {"vocab_size": tokenizer.vocabulary, "forced_eos_token_id": None}
    BartForConditionalGeneration(BartConfig(**small, **heads, **ends, **vocabulary)).save_pretrained(folder / "bart")
    replace(tokenizer, config=tokenizer.config | {"pad_token": tokenizer.end, "model_max_length": 48}).write(folder / "bart")
    return folder / "there", folder / "back", folder / "bart"


def recipe(there: Path, back: Path, seed: int = 1, **augment: Any) -> Recipe:
    ways = {"share": 1.0, "translate_there": str(there), "translate_back": str(back), **augment}
    return build_recipe({"task": "classify", "seed": seed, "augment": ways})


@pytest.mark.parametrize(
    "kinds", [(0, 1), pytest.param((2, 1), marks=pytest.mark.thorough)], ids=["ours", "of transformers"]
)
def test_seed_and_text_decide_what_comes_back_on_any_number_of_ranks(
    folders: tuple[Path, ...], kinds: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone()
    monkeypatch.setattr("shoal.train.back_translation.TOGETHER", 4)
    translators = [read_translator(folders[kind], torch.device("cpu")) for kind in kinds]
    mine = recipe(*(folders[kind] for kind in kinds))
    whole = _translated(mine, translators, TEXTS, World())
    shares = [_translated(mine, translators, TEXTS, World(rank, 2)) for rank in range(2)]
    assert whole == {**shares[0], **shares[1]} and all(shares)
    assert set(whole) == set(TEXTS) and sum(map(len, whole.values())) > len(TEXTS)
    some = {text: others for text, others in whole.items() if text in TEXTS[:3]}
    assert _translated(mine, translators, TEXTS[:3], World()) == some
    assert _translated(recipe(*folders[:2], seed=2), translators, TEXTS[:3], World()) != some


def test_the_way_back_is_the_search_of_transformers_itself(folders: tuple[Path, ...]) -> None:
    theirs = Theirs(folders[2], torch.device("cpu"))
    said = theirs.translate(TEXTS[:4], None)
    for text, translated in zip(TEXTS[:4], said, strict=True):
        inputs = theirs.tokenizer([text], return_tensors="pt")
        written = theirs.model.generate(inputs["input_ids"], max_new_tokens=47)
        alone_ = theirs.tokenizer.decode(written[0], skip_special_tokens=True)
        assert alone_.startswith(translated or "nothing")  # it may write more where no neighbour sets the limit


def test_a_text_that_a_model_can_not_read_whole_stays_itself(folders: tuple[Path, ...]) -> None:
    long = "the shoal swims " * 90
    for folder in folders:
        translator = read_translator(folder, torch.device("cpu"))
        first, second = translator.translate([long, TEXTS[0]], None)
        assert first is None and second is not None
    both = [read_translator(folder, torch.device("cpu")) for folder in folders[:2]]
    assert _translated(recipe(*folders[:2]), both, [long], World()) == {long: []}


def test_an_augmentation_reads_what_comes_back_and_keeps_labels_and_made_texts_are_kept(
    folders: tuple[Path, ...], tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mine = recipe(*folders[:2], variants=3)
    examples = [Example({"text": text, "label": str(n % 2)}, f"f:{n}") for n, text in enumerate(TEXTS)]
    task = Classify(mine, tokenizer, 64, examples)
    base = random_model(BERT)
    augmentation, (told,) = make_augmentation(mine, alone(), task, base, tokenizer, examples)
    (kept,) = tmp_path.rglob("*.json")
    made = json.loads(kept.read_text())
    assert str(kept) in told and set(made) == set(TEXTS) and max(map(len, made.values())) <= 3
    assert augmentation is not None
    for example in examples:
        read = [augmentation.vary(example, task.varied, key) for key in range(30)]
        assert {one.values["text"] for one in read} == {example.values["text"], *made[example.values["text"]]}
        assert {one.values["label"] for one in read} == {example.values["label"]}
    kept.write_text(json.dumps({text: ["found"] for text in TEXTS}))
    assert back_translated(mine, alone(), TEXTS)[0][TEXTS[0]] == ["found"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))  # a file, in which no folder can be made
    made_anew, said = back_translated(mine, alone(), TEXTS[:1])
    assert set(made_anew) == {TEXTS[0]} and "not kept (" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"translate_back": ""}, "'augment.translate_back' is missing"),
        ({"translate_there": str(Path(__file__).parent)}, "train: no model that translates"),
        ({"translate_there": "nowhere"}, "nowhere: no model that translates; accepted: a run of task 'translate'"),
        ({"share": 0.0}, "'augment.translate_there' is set, and 'augment.share' is 0"),
    ],
)
def test_what_can_not_translate_is_told(
    folders: tuple[Path, ...], tokenizer: TextTokenizer, changes: dict[str, Any], message: str
) -> None:
    mine = recipe(*folders[:2], **changes)
    examples = [Example({"text": text, "label": str(n % 2)}, f"f:{n}") for n, text in enumerate(TEXTS)]
    task = Classify(mine, tokenizer, 64, examples)
    with pytest.raises((InputError, RecipeError), match=message):
        check_augmentation(mine, task)
