"""Questions and answers in SQuAD's layout (2.0), from the documentation in Python's standard library.

    python bench/docs_qa.py data/docs-qa

Writes `train.json` and `held-out.json`, a tenth of the modules, chosen by a hash of their names, for
`recipes/docs-qa.yaml`. A context is the documentation of some functions and classes that follow each other in a module,
each under its name; the questions are about one of them, and the answer is a sentence of its documentation, as it stands:

- What does NAME do? Its first sentence, if that doesn't begin with Return.
- What does NAME return? Its first sentence that begins with Return or Returns.
- When does NAME raise ERROR? Its first sentence with raise, raises or raised, that names one error alone.

Nothing in a context answers what a function returns whose documentation doesn't say: such questions have no answer.
"""

import ast
import hashlib
import inspect
import json
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEAVE_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo", "lib2to3", "__pycache__"}
CONTEXT = 1000
"""Characters of a context, about."""
SHORTEST, LONGEST = 20, 200
"""Characters of a sentence that may be an answer."""
SENTENCE = re.compile(r"[^\s.].*?(?:\.(?=\s|$)|(?=\n\s*\n)|$)", re.DOTALL)
RAISES = re.compile(r"\brais(?:e|es|ed)\b")
ERROR = re.compile(r"\b[A-Z][A-Za-z]*(?:Error|Exception)\b")
RETURNS = re.compile(r"\breturn", re.IGNORECASE)

Node = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Documented:
    """A function or class, by its dotted name in its module, and its documentation."""

    name: str
    text: str
    is_function: bool


def documented(module: ast.AST, prefix: str = "") -> Iterator[Documented]:
    """What is documented in a module, in the order of the file, methods included; not what is private."""
    for node in ast.iter_child_nodes(module):
        if not isinstance(node, Node) or node.name.startswith("_"):
            continue
        text = ast.get_docstring(node)
        if text and len(text) < CONTEXT:
            yield Documented(prefix + node.name, inspect.cleandoc(text).rstrip(), not isinstance(node, ast.ClassDef))
        if isinstance(node, ast.ClassDef):
            yield from documented(node, f"{prefix}{node.name}.")


def questions(entry: Documented) -> Iterator[tuple[str, tuple[int, int] | None]]:
    """(question, where its answer stands in the documentation, None for nowhere)."""
    sentences = [match.span() for match in SENTENCE.finditer(entry.text)]
    answers = [
        span for span in sentences if SHORTEST <= span[1] - span[0] <= LONGEST and ">>>" not in entry.text[slice(*span)]
    ]
    if not answers:
        return
    first = entry.text[slice(*sentences[0])]
    if sentences[0] in answers and not first.startswith("Return"):
        yield f"What does {entry.name} do?" if entry.is_function else f"What is {entry.name}?", sentences[0]
    returns = [span for span in answers if re.match("Returns? ", entry.text[slice(*span)])]
    if entry.is_function and returns:
        yield f"What does {entry.name} return?", returns[0]
    elif entry.is_function and not RETURNS.search(entry.text):
        yield f"What does {entry.name} return?", None
    for span in answers:
        sentence = entry.text[slice(*span)]
        errors = set(ERROR.findall(sentence))
        if RAISES.search(sentence) and len(errors) == 1:
            yield f"When does {entry.name} raise {errors.pop()}?", span
            break


def paragraph(entries: list[Documented]) -> dict[str, Any]:
    """A context, and the questions about it."""
    context, asked = "", []
    for entry in entries:
        context += f"{entry.name}\n"
        for question, span in questions(entry):
            answers = []
            if span is not None:
                answers.append({"text": entry.text[slice(*span)], "answer_start": len(context) + span[0]})
            name = hashlib.blake2b(f"{question}{context}".encode(), digest_size=8).hexdigest()
            asked.append({"id": name, "question": question, "answers": answers, "is_impossible": not answers})
        context += f"{entry.text}\n\n"
    return {"context": context.rstrip(), "qas": asked}


def article(path: Path, title: str) -> dict[str, Any]:
    """A module."""
    paragraphs, entries = [], []
    found = {entry.name: entry for entry in documented(ast.parse(path.read_bytes()))}  # of two with one name, the last
    for entry in found.values():
        if entries and sum(len(other.text) for other in entries) + len(entry.text) > CONTEXT:
            paragraphs.append(paragraph(entries))
            entries = []
        entries.append(entry)
    if entries:
        paragraphs.append(paragraph(entries))
    return {"title": title, "paragraphs": [part for part in paragraphs if part["qas"]]}


def main(target: str) -> None:
    """Write both files."""
    root, folder = Path(sysconfig.get_path("stdlib")), Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "held-out": []}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if LEAVE_OUT & {*parts} or any(part.startswith("_") for part in parts if part != "__init__"):
            continue
        title = ".".join(part for part in parts if part != "__init__")
        found = article(path, title)
        if found["paragraphs"]:
            held_out = hashlib.blake2b(title.encode(), digest_size=1).digest()[0] < 26
            splits["held-out" if held_out else "train"].append(found)
    for name, articles in splits.items():
        (folder / f"{name}.json").write_text(
            json.dumps({"version": "2.0", "data": articles}, ensure_ascii=False), encoding="utf-8"
        )
        asked = [question for found in articles for part in found["paragraphs"] for question in part["qas"]]
        none = sum(question["is_impossible"] for question in asked)
        print(f"{folder / name}.json: {len(articles)} modules, {len(asked):,} questions, {none:,} without an answer")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) == 2 else "data/docs-qa")
