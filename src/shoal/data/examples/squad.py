"""SQuAD's JSON (Rajpurkar et al. 2016, arXiv:1606.05250; 2018, arXiv:1806.03822), versions 1.1 and 2.0.

`data` holds articles, `paragraphs` their texts (`context`), `qas` the questions about one, each with its `id` and its
`answers`; where these are none, or `is_impossible` is true, the text doesn't answer it.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shoal.core.errors import InputError
from shoal.core.recipe import Examples
from shoal.data.examples.example import Role
from shoal.data.readers import opened_text


def read_squad(path: Path, roles: Sequence[Role], settings: Examples) -> Iterator[tuple[str, dict[str, Any] | InputError]]:
    """(where, row) of every question, or what is wrong with it; `InputError` for a file of another layout."""
    with opened_text(path, str(path)) as file:
        try:
            tree = json.load(file)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); JSONL files end in .jsonl") from None
        except RecursionError:
            raise InputError(f"{path}: not valid JSON: nested too deeply") from None
    count = 0
    for number, article in enumerate(_list(tree, "data", str(path)), 1):
        for place, paragraph in enumerate(_list(article, "paragraphs", f"{path}: article {number}"), 1):
            where = f"{path}: article {number}, paragraph {place}"
            for question in _list(paragraph, "qas", where):
                count += 1
                if not isinstance(question, dict):
                    yield where, InputError(f"{where}: a question is an object, not {type(question).__name__}")
                    continue
                name = str(question.get("id", count))
                impossible = question.get("is_impossible") is True
                yield (
                    f"{path}: question {name}",
                    {
                        "id": name,
                        "question": question.get("question"),
                        "context": paragraph.get("context"),
                        "answers": [] if impossible else question.get("answers"),
                    },
                )


def _list(tree: Any, name: str, where: str) -> list[Any]:
    found = tree.get(name) if isinstance(tree, dict) else None
    if not isinstance(found, list):
        raise InputError(
            f"{where}: no list '{name}'; SQuAD's layout is data > paragraphs > context, qas > question, answers"
        )
    return found
