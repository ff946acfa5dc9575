"""The page's files: nothing in them makes HTML of a text, runs one, or asks another server."""

import re
from pathlib import Path

import shoal.serve

FILES = sorted((Path(shoal.serve.__file__).parent / "page").iterdir())
FORBIDDEN = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|\bon\w+=|\bstyle=|javascript:"
)
ELSEWHERE = re.compile(r"(?:src|href|url\(|fetch\(|import\b[^;]*)[\"'(= ]+(?:https?:)?//")


def test_no_text_becomes_html_or_a_script() -> None:
    assert {file.name for file in FILES} >= {"index.html", "app.js", "style.css"}
    assert [file.name for file in FILES if FORBIDDEN.search(file.read_text(encoding="utf-8"))] == []


def test_nothing_is_fetched_from_elsewhere() -> None:
    assert [file.name for file in FILES if ELSEWHERE.search(file.read_text(encoding="utf-8"))] == []
