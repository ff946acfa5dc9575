"""Pairs for `recipes/docstrings.yaml`: functions of Python's standard library, and the first sentences of their docstrings.

    python bench/docstrings.py data/docstrings.jsonl

A pair is a function without its docstring, as `ast` writes it, and the docstring's first paragraph on one line. Functions
that differ in nothing are taken once; tests are left out, and so is what is very short or long.
"""

import ast
import json
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

SHORTEST, LONGEST = 15, 200
"""Characters of a sentence."""
LONGEST_CODE = 2000
WITHOUT = {"test", "tests", "idle_test", "site-packages", "lib2to3", "__pycache__"}


def pairs(text: str) -> Iterator[tuple[str, str]]:
    """(function without its docstring, first paragraph of that)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escapes that old files write wrongly
        tree = ast.parse(text)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = ast.get_docstring(node)
        if not docstring or len(node.body) < 2:
            continue
        node.body = node.body[1:]
        sentence, code = " ".join(docstring.split("\n\n")[0].split()), ast.unparse(node)
        if SHORTEST <= len(sentence) <= LONGEST and len(code) <= LONGEST_CODE:
            yield code, sentence


def main(target: str) -> None:
    """Write the pairs, a JSON object a line."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, str] = {}
    for file in sorted(root.rglob("*.py")):
        if WITHOUT.isdisjoint(file.relative_to(root).parts):
            found |= dict(pairs(file.read_text(encoding="utf-8", errors="replace")))
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as lines:
        for code, sentence in found.items():
            lines.write(json.dumps({"prompt": code, "completion": sentence}, ensure_ascii=False) + "\n")
    print(f"{path}: {len(found):,} pairs")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) == 2 else "data/docstrings.jsonl")
