"""Entities: tokens, loss and labels of `transformers`' token classification; strict figures; long sentences divided."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForTokenClassification, GPT2TokenizerFast, PreTrainedTokenizerFast

from shoal.core.errors import InputError
from shoal.data.examples.alignment import Aligner
from shoal.data.examples.example import Example
from shoal.data.tokenizer import TextTokenizer
from shoal.models import hugging_face
from shoal.tasks.tag import Tag, divide, entity_figures
from tests.models.shapes import fill
from tests.tasks.labelled import CHINESE, batch_of, make_task, wordpiece
from tests.tasks.texts import tokenizer as bpe

SENTENCES = [
    ("the shoal swims with Ada-Lovelace tomorrow", "O O O O B-PER O"),
    ("Sea", "B-LOC"),
    ("every fish of the whole Adriatic sea knows one mind", "O O O O O B-LOC I-LOC O B-PER I-PER"),
]
EXAMPLES = [Example({"tokens": text.split(), "tags": tags.split()}, f"f:{n}") for n, (text, tags) in enumerate(SENTENCES, 1)]


def in_transformers(tokenizer: TextTokenizer, kind: Any = PreTrainedTokenizerFast, **words: Any) -> Any:
    return kind(tokenizer_object=tokenizer.library, unk_token="[UNK]", pad_token="[PAD]", **words)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["joined", "padded"])
def test_loss_and_labels_are_those_of_bert_for_token_classification(layout: Any) -> None:
    task: Tag = make_task("tag", wordpiece(), EXAMPLES)
    config = BertConfig(
        vocab_size=110, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=64, num_labels=5,
    )  # fmt: skip
    theirs = BertForTokenClassification(config).eval()
    fill(theirs)
    theirs_config = config.to_dict() | {"architectures": ["BertForTokenClassification"]}
    ours = hugging_face.build(theirs_config, theirs.state_dict()).eval()

    read = in_transformers(wordpiece())([text.split() for text, _ in SENTENCES], is_split_into_words=True, padding=True)
    labels = torch.full((3, len(read["input_ids"][0])), -100)
    for row, (_, tags) in enumerate(SENTENCES):
        words = read.word_ids(row)
        for place, word in enumerate(words):
            if word is not None and word != words[place - 1]:
                labels[row, place] = task.numbers[tags.split()[word]]
    inputs = {name: torch.tensor(read[name]) for name in ("input_ids", "attention_mask")}
    found = theirs(**inputs, labels=labels)

    batch = batch_of(task, EXAMPLES, layout)
    assert batch.pieces is not None
    tokens, targets = batch.tokens.flatten(), batch.targets.flatten()
    for row, (start, length) in enumerate(zip(batch.pieces.starts.tolist(), batch.pieces.lengths.tolist(), strict=True)):
        assert (
            tokens[start : start + length].tolist() == inputs["input_ids"][row][inputs["attention_mask"][row] > 0].tolist()
        )
        assert targets[start : start + length].tolist() == labels[row][:length].tolist()
    loss_sum, count = task.loss(ours, batch)
    torch.testing.assert_close(loss_sum / count, found.loss, rtol=1e-5, atol=1e-5)
    expected = found.logits[labels >= 0].log_softmax(-1).numpy()
    np.testing.assert_allclose(np.concatenate(task.outputs(ours, batch, True)), expected, rtol=1e-4, atol=1e-5)


def test_byte_level_words_stand_behind_a_space_as_with_add_prefix_space() -> None:
    words = ["The", "fish's", "don't", "naïve", "鱼群", "2026"]
    theirs = GPT2TokenizerFast(tokenizer_object=bpe().library, add_prefix_space=True)
    theirs.backend_tokenizer.pre_tokenizer.add_prefix_space = True
    found = theirs(words, is_split_into_words=True)
    ours = Aligner(bpe()).words(words, [True] * len(words))
    assert np.concatenate(ours).tolist() == found["input_ids"]
    assert np.repeat(np.arange(len(words)), [len(word) for word in ours]).tolist() == found.word_ids()
    # a word that begins a text, or follows a sign without a space
    assert np.concatenate(Aligner(bpe()).words(["The", "sea"], [False, True])).tolist() == bpe().encode("The sea").tolist()


def test_every_word_has_a_token_and_special_tokens_are_text() -> None:
    words = Aligner(wordpiece()).words(["the", "\u200b", "[SEP]"], [True] * 3)
    assert words[1].tolist() == [wordpiece().unknown]
    assert wordpiece().end_of_text not in words[2]


def test_figures_are_strict_and_by_type() -> None:
    true = [["B-X", "I-X", "O", "B-Y"], ["B-Y", "B-X"]]
    told = [["B-X", "O", "O", "B-Y"], ["B-Y", "B-Y"]]  # one X too short; one X taken for a Y
    figures = entity_figures(true, told, "bio")
    assert (figures["precision"], figures["recall"], figures["f1"], figures["entities"]) == (0.5, 0.5, 0.5, 4)
    assert figures["labels"]["X"] == {"precision": 0, "recall": 0, "f1": 0, "entities": 2}
    assert figures["labels"]["Y"] == pytest.approx({"precision": 2 / 3, "recall": 1, "f1": 0.8, "entities": 2})
    endings = {"B-X": "S-X", "B-Y": "S-Y"}
    same = entity_figures(
        [["B-X", "E-X", "O", "S-Y"], ["S-Y", "S-X"]], [[endings.get(t, t) for t in ts] for ts in told], "bioes"
    )
    assert same == figures
    assert entity_figures([["O"]], [["O"]], "bio")["f1"] == 0


def told_by(task: Tag, example: Example, tags: list[str]) -> dict[str, Any]:
    """What is predicted of an example by a model that is sure of these tags, part by part."""
    scores = np.log(np.eye(len(task.labels))[[task.numbers[tag] for tag in tags]] + 1e-6)
    sizes = [int(((piece.targets >= 0) & (piece.targets < len(task.labels))).sum()) for (piece,) in task.samples(example)]
    return task.predict([example], [np.split(scores, np.cumsum(sizes)[:-1])])[0]


@pytest.mark.parametrize("settings", [{}, {"learned": "bioes"}, {"subwords": "all"}])
def test_predictions_have_the_places_of_entities_in_the_text(settings: dict[str, Any]) -> None:
    tags = ["B-PER", "I-PER", "I-PER", "O", "O", "O", "B-LOC", "I-LOC", "O", "O", "B-LOC", "I-LOC", "O", "O", "O"]
    tags += ["B-PER", "I-PER", "I-PER", "O", "O", "O", "B-LOC", "I-LOC", "O", "O"]
    example = Example({"tokens": list(CHINESE), "tags": tags}, "f:1")
    task: Tag = make_task("tag", wordpiece(), [example], length=17, **settings)
    target = [piece.targets[piece.targets >= 0] % len(task.labels) for (piece,) in task.samples(example)]
    assert list(map(len, target)) == [15, 10]
    prediction = told_by(task, example, [task.labels[number] for number in np.concatenate(target)])
    assert prediction["text"] == CHINESE
    shown = [(entity["text"], entity["type"], entity["start"]) for entity in prediction["entities"]]
    assert shown == [
        ("江泽民", "PER", 0), ("北京", "LOC", 6), ("美国", "LOC", 10), ("邓小平", "PER", 15), ("上海", "LOC", 21),
    ]  # fmt: skip
    assert task.measure([example], [prediction])["f1"] == 1
    assert task.notes() == ["2 of 2 sentences are longer than the model reads, and were divided"]


def test_all_tokens_of_a_word_learn_its_tag_where_they_are_to() -> None:
    task: Tag = make_task("tag", wordpiece(), EXAMPLES, subwords="all")
    ((piece,),) = task.samples(EXAMPLES[0])
    assert piece.targets is not None
    inside = [task.labels[target % 5] for target in piece.targets if target >= 5]
    assert {"I-PER", "O"} == set(inside) and (piece.targets >= 0).sum() == len(piece.tokens) - 2


def test_long_sentences_are_divided_behind_a_sign_in_the_second_half() -> None:
    sizes, ends = [2] * 9, [False] * 9
    assert divide(sizes, ends, 8) == [slice(0, 4), slice(4, 8), slice(8, 9)]
    ends[0] = ends[2] = True
    assert divide(sizes, ends, 8) == [slice(0, 3), slice(3, 7), slice(7, 9)]
    assert divide(sizes, ends, 18) == [slice(0, 9)]
    assert divide([8, 8], [True, True], 8) == [slice(0, 1), slice(1, 2)]


def test_an_unknown_type_and_data_without_entities_are_told() -> None:
    task: Tag = make_task("tag", wordpiece(), EXAMPLES[:1])
    with pytest.raises(
        InputError, match=r"^f:2, token 1 'Sea': unknown type 'LOC'; the types are: PER\. Others are added by"
    ):
        task.samples(EXAMPLES[1])
    with pytest.raises(InputError, match="the training examples have no entities"):
        make_task("tag", wordpiece(), [Example({"tokens": ["a"], "tags": ["O"]}, "f:1")])
