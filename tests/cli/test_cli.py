"""What holds for every verb: help, exit codes, one-line errors, a stdout that is only ever what was asked for."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from shoal import __version__
from shoal.cli import VERBS
from tests.cli.conftest import Shoal


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_shoal_alone_says_what_it_can_do_and_where_to_start(shoal: Shoal, words: list[str]) -> None:
    outcome = shoal(*words)
    assert (outcome.code, outcome.err) == (0, "")
    for verb, meaning in VERBS.items():
        assert f"{verb:<10}{meaning}" in outcome.out
    assert "Start with: shoal demo" in outcome.out


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_the_version_is_one_line(shoal: Shoal, word: str) -> None:
    outcome = shoal(word)
    assert (outcome.code, outcome.out, outcome.err) == (0, f"shoal {__version__}\n", "")


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_on_a_line_of_its_own(shoal: Shoal, verb: str) -> None:
    outcome = shoal(verb, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"usage: shoal {verb}" in outcome.out
    examples = [line.strip() for line in outcome.out.splitlines() if line.strip().startswith(f"shoal {verb}")]
    assert examples
    assert all(line.count("shoal ") == 1 for line in examples)


@pytest.mark.parametrize("verb", ["prepare", "pretrain"])
def test_help_of_a_verb_with_a_recipe_lists_every_key(shoal: Shoal, verb: str) -> None:
    shown = shoal(verb, "--help").out
    assert "--optimizer.lookahead.every" in shown
    assert "--train.precision" in shown
    assert "fp32, bf16" in shown
    assert "--data.on_error, --on-error" in shown


@pytest.mark.parametrize(
    ("word", "hint"),
    [("pretain", ". Did you mean 'pretrain'?"), ("Generate", ". Did you mean 'generate'?"), ("xyzzy", ""), ("", "")],
)
def test_an_unknown_verb_is_told_with_the_nearest(shoal: Shoal, word: str, hint: str) -> None:
    outcome = shoal(word)
    assert outcome.code == 2
    assert outcome.error == f"'{word}' is not a verb; there are: {', '.join(VERBS)}{hint}"


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["generate", "m", "--tmperature", "1"], "--temperature"),
        (["evaluate", "m", "--bach", "1"], "--batch"),
        (["pretrain", "--dryrun"], "--dry-run"),
        (["demo", "--worker", "2"], "--workers"),
        (["doctor", "--jsn"], "--json"),
        (["doctor", "words"], ""),
        (["generate", "m", "--train.steps", "5"], ""),
        (["generate"], "PATH"),
        (["generate", "m", "--tokens", "many"], "--tokens"),
        (["evaluate", "m", "--batch", "1.5"], "--batch"),
    ],
)
def test_an_option_that_is_not_understood_is_told_with_the_nearest(shoal: Shoal, words: list[str], near: str) -> None:
    outcome = shoal(*words)
    assert (outcome.code, outcome.out) == (2, "")
    assert "Traceback" not in outcome.err
    assert near in outcome.err
    assert f"shoal {words[0]} --help" in outcome.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["generate", "m", "--tokens", "0"], "--tokens is 0"),
        (["pretrain", "--train.stepz", "3"], "--train.stepz is not a recipe key; the nearest is 'train.steps'"),
        (["prepare", "missing.yaml"], "missing.yaml: no such recipe"),
    ],
)
def test_debug_adds_the_traceback_and_changes_nothing_else(shoal: Shoal, words: list[str], expected: str) -> None:
    plain = shoal(*words)
    assert plain.error.startswith(expected)
    debug = shoal(*words, "--debug")
    assert (debug.code, debug.out) == (plain.code, "")
    assert debug.err.startswith("Traceback (most recent call last)")
    assert debug.err.splitlines()[-1] == plain.err.strip()


def python_m_shoal(words: Sequence[str], **options: object) -> "subprocess.CompletedProcess[bytes]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-m", "shoal", *words]
    return subprocess.run(command, stderr=subprocess.PIPE, env=environment, check=False, timeout=120, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("words", [["--version"], ["demo", "--help"]])
def test_a_reader_that_has_left_is_no_traceback(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = python_m_shoal(words, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_the_module_and_the_installed_command_are_the_same() -> None:
    done = python_m_shoal(["pretain"], stdout=subprocess.PIPE)
    installed = subprocess.run(
        [Path(sys.executable).parent / "shoal", "pretain"], capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", installed.stderr)
    assert installed.returncode == 2


def test_bad_lines_are_left_out_as_the_message_says(shoal: Shoal, tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text("".join(f'{{"text": "line {number} of text"}}\n' for number in range(40)) + '{"text": broken\n')
    words = ["prepare", "--data.sources", f"[{file}]", "--data.directory", tmp_path / "corpus", "--tokenizer.kind", "char"]
    stopped = shoal(*words)
    assert stopped.code == 2
    assert "some.jsonl:41" in stopped.err and "--on-error skip" in stopped.err
    skipped = shoal(*words, "--data.held_out", "0.3", "--on-error", "skip", "--json")
    assert skipped.code == 0, skipped.err
    assert json.loads(skipped.out)["left_out"] == 1
