"""CoNLL columns and SQuAD's JSON: what they hold, and where; sentences as tokens or as texts with entities."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import List as DatasetsList

from shoal.core.errors import InputError
from shoal.core.recipe import Examples
from shoal.data.examples.answers import ROLES as ANSWER_ROLES
from shoal.data.examples.answers import Right, read_answers
from shoal.data.examples.entities import Entity
from shoal.data.examples.example import Example, Role
from shoal.data.examples.readers import read_examples
from shoal.data.examples.sentences import ROLES as TAG_ROLES
from shoal.data.examples.sentences import read_sentence
from shoal.data.readers import Faults

CONLL = """-DOCSTART- -X- O O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

-DOCSTART- -X- O O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""


def read(path: Path, roles: tuple[Role, ...], **settings: Any) -> list[Example]:
    return list(read_examples([str(path)], roles, Examples(**settings), Faults()))


def test_conll_files_are_sentences_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "train.conll"
    path.write_text(CONLL.rstrip("\n"))
    first, second = read(path, TAG_ROLES)
    assert (first.where, second.where) == (f"{path}:3", f"{path}:8")
    assert second.values["tokens"] == ["Peter", "Blackburn"]
    sentence = read_sentence(second, "bio", "word")
    assert (sentence.text, sentence.entities) == ("Peter Blackburn", [Entity("PER", 0, 2)])
    assert sentence.where(1) == f"{path}:9"
    swapped = read(path, TAG_ROLES, columns={"tokens": "2", "tags": "3"})[0]
    assert (swapped.values["tokens"], swapped.values["tags"]) == (["NNP", "VBZ"], ["B-NP", "B-VP"])


def test_columns_apart_by_tabs_may_hold_other_spaces(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("a b\tO\r\n\u3000c\tB-X\r\n")
    (example,) = read(path, TAG_ROLES, format="conll")
    assert example.values["tokens"] == ["a b", "\u3000c"]


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("a O\nb\n", {}, "train.conll:2: 1 column, where others have 2"),
        ("a\nb\n", {}, "train.conll:1: one column; a line has a word and, apart by a space or a tab, its tag"),
        ("a O\n", {"tags": "3"}, "'examples.columns' has the tags in column '3', and"),
        ("a O\n", {"tags": "ner"}, "'examples.columns' has the tags in column 'ner', and"),
        ("a O\nb I-X\n", {}, "train.conll:2: I-X follows O; in BIO an entity begins with B-X"),
    ],
)
def test_what_is_wrong_with_a_conll_file_is_told_with_its_line(
    tmp_path: Path, text: str, columns: dict[str, str], expected: str
) -> None:
    (tmp_path / "train.conll").write_text(text)
    with pytest.raises(InputError) as caught:
        read_sentence(read(tmp_path / "train.conll", TAG_ROLES, columns=columns)[0], "bio", "word")
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(expected)


def test_chinese_words_stand_together_others_apart() -> None:
    chinese = Example({"tokens": list("江泽民在B京"), "tags": ["B-PER", "I-PER", "I-PER", "O", "B-LOC", "I-LOC"]}, "f:1")
    sentence = read_sentence(chinese, "bio", "word")
    assert sentence.text == "江泽民在B京"
    assert [sentence.text[sentence.places[e.first][0] : sentence.places[e.end - 1][1]] for e in sentence.entities] == [
        "江泽民", "B京",
    ]  # fmt: skip


def test_a_text_is_cut_into_words_signs_and_chinese_characters() -> None:
    text = "Ada's 2 naïve हिन्दी 鱼群。"
    example = Example({"text": text, "entities": [[0, 3, "PER"], {"start": 21, "end": 23, "label": "X"}]}, "f:1")
    sentence = read_sentence(example, "bio", "word")
    assert sentence.words == ["Ada", "'", "s", "2", "naïve", "हिन्दी", "鱼", "群", "。"]
    assert sentence.spaced == [False, False, False, True, True, True, True, False, False]
    assert sentence.entities == [Entity("PER", 0, 1), Entity("X", 6, 8)]


def test_tags_that_are_numbers_have_the_names_that_the_folder_gives_them(tmp_path: Path) -> None:
    names = ClassLabel(names=["O", "B-X", "I-X"])
    features = Features({"tokens": DatasetsList(Value("string")), "ner_tags": DatasetsList(names)})
    dataset = Dataset.from_dict({"tokens": [["a", "b", "c"]], "ner_tags": [[0, 1, 2]]}, features)
    dataset.save_to_disk(tmp_path / "folder")
    dataset.to_parquet(tmp_path / "rows.parquet")
    for name in ("folder", "rows.parquet"):
        (example,) = read(tmp_path / name, TAG_ROLES)
        assert read_sentence(example, "bio", "word").entities == [Entity("X", 1, 3)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "f:1: 2 tokens and 1 tags; every token has one"),
        ({"tokens": ["a"], "tags": [3]}, "f:1: the tags are numbers, and nothing says what each means"),
        ({"tokens": "a b", "tags": ["O"]}, "f:1: the tokens are str, not a list of texts"),
        ({"tokens": [], "tags": []}, "f:1: has no tokens"),
        ({"tokens": ["a", "b"], "tags": ["O", "I-X"]}, "f:1, token 2 'b': I-X follows O"),
        ({"text": " ", "entities": []}, "f:1: the text is empty"),
        ({"text": "a b", "entities": None}, "f:1: the entities are NoneType, not a list"),
        ({"text": "a b", "entities": [[0, 9, "X"]]}, "f:1: an entity lies at 0 to 9, and the text has 3 characters"),
        ({"text": "a b", "entities": [[0, 1]]}, "f:1: an entity is {start, end, label}, in characters, not [0, 1]"),
        ({"text": "abc d", "entities": [[1, 3, "X"]]}, "f:1: the entity 'bc' at 1 to 3 begins or ends within a word"),
        ({"text": "a b c", "entities": [[0, 3, "X"], [2, 5, "Y"]]}, "f:1: the entity 'b c' at 2 to 5 overlaps another one"),
    ],
)
def test_what_is_wrong_with_a_sentence_is_told(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        read_sentence(Example(values, "f:1"), "bio", "word")
    assert str(caught.value).startswith(expected)


def squad(answers: Any, **question: Any) -> dict[str, Any]:
    asked = {"id": "q7", "question": "Who swims?", "answers": answers, **question}
    return {"version": "2.0", "data": [{"title": "fish", "paragraphs": [{"context": "A shoal swims.", "qas": [asked]}]}]}


def test_questions_of_both_versions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(squad([{"text": "shoal", "answer_start": 2}, {"text": "A shoal", "answer_start": 0}])))
    (example,) = read(path, ANSWER_ROLES)
    assert example.where == f"{path}: question q7"
    assert read_answers(example) == [Right("shoal", 2), Right("A shoal", 0)]
    impossible = squad([], is_impossible=True, plausible_answers=[{"text": "shoal", "answer_start": 2}])
    path.write_text(json.dumps(impossible))
    assert read_answers(read(path, ANSWER_ROLES)[0]) == []
    lists = Example({"context": "A shoal", "question": "?", "answers": {"text": ["shoal"], "answer_start": [2]}}, "f:1")
    assert read_answers(lists) == [Right("shoal", 2)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            squad([{"text": "fish", "answer_start": 2}]),
            ": question q7: the answer 'fish' is not in the context at 2, nor any",
        ),
        (
            squad([{"text": "shoal", "answer_start": 3}]),
            ": question q7: the answer 'shoal' is not in the context at 3; it is at 2",
        ),
        (squad([{"text": "", "answer_start": 3}]), ": question q7: an answer is '', not text; a question without"),
        (squad([{"text": "shoal"}]), ": question q7: the answer 'shoal' begins at None, not at a number"),
        (squad("shoal"), ": question q7: the answers are str, not"),
        (squad(None), ": question q7: the answers are NoneType, not"),
        ({"data": [{"paragraphs": [{"context": "x"}]}]}, ": article 1, paragraph 1: no list 'qas'; SQuAD's layout is"),
        ([], ": no list 'data'"),
        ("{", ":1: not valid JSON"),
    ],
)
def test_what_is_wrong_with_questions_is_told_with_file_and_question(tmp_path: Path, content: Any, expected: str) -> None:
    path = tmp_path / "dev.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError) as caught:
        read_answers(read(path, ANSWER_ROLES)[0])
    assert str(caught.value).startswith(f"{path}{expected}")
