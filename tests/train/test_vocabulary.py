"""The model's vocabulary: rounded up for speed, at least the tokenizer's, and by the same tokenizer as the weights'."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from shoal.core.errors import InputError, RecipeError
from shoal.core.model_directory import write_model_directory
from shoal.core.recipe import Data, Model, Tokenizer
from shoal.data.prepare import prepare
from shoal.data.shards import Corpus
from shoal.data.tokenizer import TextTokenizer, build_char, read_tokenizer, with_special
from shoal.models import hugging_face
from shoal.models.transformer import Transformer
from shoal.serve.generation import generate, load_language_model
from shoal.serve.sampling import Sampling
from shoal.train.models import build_model
from shoal.train.run import Session, run_training
from shoal.train.sizes import estimate
from tests.train.runs import RunDirectory, tiny_recipe

CPU = torch.device("cpu")


def write_model(folder: Path, model: Transformer, tokenizer: TextTokenizer) -> Path:
    """The model's folder in the Hugging Face layout."""
    config = hugging_face.config_to_hugging_face(model.config)
    write_model_directory(folder, config, hugging_face.weights_to_hugging_face(model), tokenizer.write, "")
    return folder


def test_a_vocabulary_is_rounded_up_only_where_a_recipe_says_so(corpus: Path) -> None:
    vocabulary = Corpus.open(corpus).vocabulary
    for multiple, expected in ((None, vocabulary), (1, vocabulary), (64, 64), (7, -(-vocabulary // 7) * 7)):
        recipe = tiny_recipe(corpus, model={"vocabulary_multiple": multiple})
        model = build_model(recipe, vocabulary, CPU)
        assert model.config.vocabulary == model.head_weight.shape[0] == expected
        assert estimate(recipe, vocabulary, 1)["parameters"] == sum(p.numel() for p in model.parameters())


def test_a_model_with_a_rounded_vocabulary_trains_loads_in_transformers_and_never_says_what_no_token_is(
    corpus: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = tiny_recipe(corpus, model={"vocabulary_multiple": 64}, train={"steps": 2})
    assert run_training(recipe, Session(RunDirectory(tmp_path), quiet=True)) is not None
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokens = len(AutoTokenizer.from_pretrained(tmp_path / "model"))
    assert theirs.config.vocab_size == 64 > tokens
    language = load_language_model(tmp_path)
    ids = torch.arange(8)[None]
    torch.testing.assert_close(language.model.project(language.model(ids)), theirs(ids).logits, rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # rows beyond the tokenizer are made the likeliest
        language.model.head_weight[tokens:] = 100 * language.model.head_weight[:1]
    text = "".join(generate(language, "the", 20, Sampling(temperature=1.0)))
    assert set(text) <= set(language.tokenizer.library.get_vocab())


def test_weights_know_tokens_by_number_so_another_tokenizer_is_refused(corpus: Path, tmp_path: Path) -> None:
    vocabulary, tokenizer = Corpus.open(corpus).vocabulary, read_tokenizer(corpus)
    model = build_model(tiny_recipe(corpus), vocabulary, CPU)
    letters = [token for token in tokenizer.library.get_vocab() if len(token) == 1]
    other = build_char("".join(sorted(letters))[1:] + "ß")
    assert other.vocabulary == vocabulary
    folder = write_model(tmp_path / "other", model, other)
    recipe = dataclasses.replace(tiny_recipe(corpus), model=Model(init_from=str(folder)))
    with pytest.raises(InputError, match=r"another tokenizer than .* token 0 is .* differ; .*--tokenizer\.path .*other"):
        build_model(recipe, vocabulary, CPU)
    write_model(tmp_path / "other", model, tokenizer)
    build_model(recipe, vocabulary, CPU)


def test_a_model_with_fewer_tokens_than_the_corpus_is_refused(corpus: Path, tmp_path: Path) -> None:
    vocabulary, tokenizer = Corpus.open(corpus).vocabulary, read_tokenizer(corpus)
    folder = write_model(tmp_path / "model", build_model(tiny_recipe(corpus), vocabulary, CPU), tokenizer)
    source = tmp_path / "text.txt"
    source.write_text("the shoal swims " * 200)
    choice = Tokenizer(path=str(folder), special=["<|mask|>"])
    prepare(Data(sources=[str(source)], held_out_by="tail"), choice, tmp_path / "corpus")
    larger = Corpus.open(tmp_path / "corpus").vocabulary
    assert larger == vocabulary + 1
    assert not np.any(Corpus.open(tmp_path / "corpus").split("train").windows(np.array([0]), 99) == vocabulary)
    recipe = dataclasses.replace(tiny_recipe(tmp_path / "corpus"), model=Model(init_from=str(folder)))
    with pytest.raises(InputError, match=rf"has a vocabulary of {larger}, the model only {vocabulary}; .*--tokenizer\.path"):
        build_model(recipe, larger, CPU)
    with pytest.raises(RecipeError, match=r"model\.vocabulary_multiple' can't be set beside 'model\.init_from'"):
        build_model(dataclasses.replace(recipe, model=Model(init_from=str(folder), vocabulary_multiple=64)), larger, CPU)
    rounded = build_model(tiny_recipe(corpus, model={"vocabulary_multiple": 64}), vocabulary, CPU)
    write_model(folder, rounded, with_special(tokenizer, ["<|mask|>"]))
    assert build_model(recipe, larger, CPU).config.vocabulary == 64


def test_a_run_is_evaluated_on_no_corpus_of_another_tokenizer(corpus: Path, tmp_path: Path) -> None:
    from shoal.commands.evaluate import Arguments, run

    model = build_model(tiny_recipe(corpus), Corpus.open(corpus).vocabulary, CPU)
    letters = sorted(token for token in read_tokenizer(corpus).library.get_vocab() if len(token) == 1)
    write_model(tmp_path / "other", model, build_char("".join(letters)[1:] + "ß"))
    with pytest.raises(InputError, match=r"prepared with another tokenizer than the model's: token 0"):
        run(Arguments(model=tmp_path / "other", corpus=corpus, json=True), [])
