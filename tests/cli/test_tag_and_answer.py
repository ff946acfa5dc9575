"""`shoal finetune --task tag` and `answer`: what they learn, that `evaluate` finds it again, and what they can't use."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Shoal
from tests.models.shapes import BERT
from tests.serve.languages import write_language_model
from tests.tasks.labelled import wordpiece

QUICK = [
    "--train.compile", "off", "--train.device", "cpu", "--parallel.threads", "1", "--optimizer.learning_rate", "0.01",
    "--train.global_batch", "16", "--tuning.dropout", "0.0", "--quiet", "--json",
]  # fmt: skip
PEOPLE, PLACES = ["江泽民", "邓小平"], ["北京", "上海", "美国"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT."""
    folder = tmp_path_factory.mktemp("base")
    config = replace(BERT, vocabulary=wordpiece().vocabulary, context=64, dim=32, heads=4, kv_heads=4, head_dim=8)
    write_language_model(folder / "model", wordpiece(), config)
    return folder / "model"


def write_sentences(path: Path, count: int, seed: int) -> None:
    """People who are in places, character by character."""
    choose = random.Random(seed)
    parts = [[(choose.choice(PEOPLE), "PER"), ("在", ""), (choose.choice(PLACES), "LOC"), ("。", "")] for _ in range(count)]
    lines = [
        [f"{letter} {'I' if place else 'B'}-{kind}" if kind else f"{letter} O" for text, kind in part for place, letter in
         enumerate(text)] for part in parts
    ]  # fmt: skip
    path.write_text("\n".join("\n".join(sentence) + "\n" for sentence in lines))


def write_questions(path: Path, count: int, seed: int) -> None:
    """Who swims and who reads, of two; or a third thing that nobody does."""
    choose, questions = random.Random(seed), []
    for number in range(count):
        first, second = choose.sample(["the shoal", "one fish", "a mind"], 2)
        context = f"{first} swims and {second} reads."
        asked = choose.choice(["swims", "reads", "knows"])
        right = {"swims": [(first, 0)], "reads": [(second, context.index(second, len(first)))], "knows": []}[asked]
        answers = [{"text": text, "answer_start": start} for text, start in right]
        qas = [{"id": str(number), "question": f"who {asked}", "answers": answers, "is_impossible": not answers}]
        questions.append({"context": context, "qas": qas})
    path.write_text(json.dumps({"version": "2.0", "data": [{"title": "sea", "paragraphs": questions}]}))


def as_text(lines: list[list[str]]) -> dict[str, Any]:
    """The same sentence as a text with entities, here of one B and the I's behind it."""
    entities: list[list[Any]] = []
    for place, (_, tag) in enumerate(lines):
        if tag.startswith("B-"):
            entities.append([place, place, tag[2:]])
        if tag != "O":
            entities[-1][1] = place + 1
    return {"text": "".join(letter for letter, _ in lines), "entities": entities}


def equal_figures(result: dict[str, Any], again: dict[str, Any]) -> bool:
    figures = {name for name in again if name.startswith("eval_") and name != "eval_seconds"}
    assert again["eval_loss"] == pytest.approx(result["eval_loss"], rel=1e-5)
    return len(figures) > 4 and all(again[name] == result[name] for name in figures - {"eval_loss"})


def test_entities_are_learnt_and_evaluated_alike(shoal: Shoal, base: Path) -> None:
    write_sentences(Path("train.conll"), 120, 1)
    write_sentences(Path("dev.conll"), 30, 2)
    words = ["--model", base, "--data", "train.conll", "--examples.validation", "dev.conll", "--train.epochs", "6"]
    outcome = shoal("finetune", "--task", "tag", *words, *QUICK, "--tag.learned", "bioes")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert result["eval_f1"] > 0.9
    assert result["eval_labels"]["PER"]["entities"] == 30
    assert equal_figures(result, json.loads(shoal("evaluate", "runs/run", "--json").out))
    sentences = [block.split("\n") for block in Path("dev.conll").read_text().strip().split("\n\n")]
    rows = [as_text([line.split(" ") for line in sentence]) for sentence in sentences]
    Path("dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert equal_figures(result, json.loads(shoal("evaluate", "runs/run", "--data", "dev.jsonl", "--json").out))
    lines = [json.loads(line) for line in Path("runs/run/predictions.jsonl").read_text().splitlines()]
    assert lines[1]["where"] == "dev.conll:" + str(len(lines[0]["tokens"]) + 2)
    found = lines[0]["prediction"]["entities"][0]
    assert lines[0]["prediction"]["text"][found["start"] : found["end"]] == found["text"]


def test_answers_are_learnt_and_evaluated_alike(shoal: Shoal, base: Path) -> None:
    write_questions(Path("train.json"), 200, 1)
    write_questions(Path("dev.json"), 40, 2)
    words = ["--model", base, "--data", "train.json", "--examples.validation", "dev.json", "--train.epochs", "8"]
    outcome = shoal("finetune", "--task", "answer", *words, *QUICK)
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert result["eval_exact"] > 0.6
    assert result["eval_unanswerable"]["questions"] > 5
    assert equal_figures(result, json.loads(shoal("evaluate", "runs/run", "--json").out))


SHOAL = {"text": "shoal", "answer_start": 0}


@pytest.mark.parametrize(
    ("task", "name", "content", "words", "expected"),
    [
        ("tag", "a.conll", "海 O\n\n江 B-PER\n北 I-LOC\n", [], "a.conll:4: I-LOC follows B-PER; in BIO an entity"),
        ("tag", "a.conll", "海 B-LOC\n江\n", [], "a.conll:2: 1 column, where others have 2"),
        ("tag", "a.conll", "海 B-LOC\n", ["--tag.types", "[PER]"], "a.conll:1: unknown type 'LOC'; the types are: PER"),
        ("tag", "a.conll", "海 O\n", [], "the training examples have no entities: there is nothing to tell"),
        ("tag", "a.conll", "", [], "a.conll: no examples for 'train'"),
        ("tag", "a.jsonl", {"tokens": ["a", "b"], "tags": ["B-X"]}, [], "a.jsonl:1: 2 tokens and 1 tags; every token"),
        ("tag", "a.jsonl", {"tokens": ["a", "b"]}, [], "a.jsonl:1: no column for the tags (tags, ner_tags, ner, labels)"),
        ("answer", "a.jsonl", {"context": "a shoal", "question": "?", "id": "q3", "answers": [SHOAL]}, [],
         "a.jsonl:1: question q3: the answer 'shoal' is not in the context at 0; it is at 2"),
        ("answer", "a.jsonl", {"context": "a shoal", "question": "?"}, [], "a.jsonl:1: no column for the answers"),
        ("answer", "a.jsonl", {"context": " ", "question": "?", "answers": []}, [], "a.jsonl:1: the context is empty"),
        ("answer", "a.json", "[]", [], "a.json: no list 'data'; SQuAD's layout is data > paragraphs"),
    ],
)  # fmt: skip
def test_what_examples_can_not_be_used_is_told(
    shoal: Shoal, base: Path, task: str, name: str, content: Any, words: list[str], expected: str
) -> None:
    Path(name).write_text(content if isinstance(content, str) else json.dumps(content))
    given = ["--model", base, "--data", name, "--examples.validation", name]
    outcome = shoal("finetune", "--task", task, *given, *QUICK, *words)
    assert outcome.code == 2
    assert outcome.error.startswith(expected)
    assert not Path("runs/run/model").exists()


def test_long_sentences_and_what_is_left_out_are_told_once(shoal: Shoal, base: Path) -> None:
    write_sentences(Path("train.conll"), 20, 1)
    text = Path("train.conll").read_text()
    Path("train.conll").write_text(text + text.replace("\n\n", "\n") + "\n江 I-PER\n")
    words = ["--model", base, "--data", "train.conll", "--examples.validation", "train.conll"]
    noisy = [word for word in QUICK if word != "--quiet"]
    outcome = shoal("finetune", "--task", "tag", *words, *noisy, "--train.steps", "1", "--examples.on_error", "skip")
    assert outcome.err.count("2 examples left out, which can't be used: train.conll:") == 1
    assert outcome.err.count("2 of 40 sentences are longer than the model reads, and were divided") == 1
    write_questions(Path("train.json"), 20, 1)
    words = ["--model", base, "--data", "train.json", "--examples.validation", "train.json", "--examples.length", "12"]
    outcome = shoal("finetune", "--task", "answer", *words, *noisy, "--train.steps", "1", "--name", "other")
    assert outcome.err.count("contexts are longer than the model reads: read in windows") == 1
