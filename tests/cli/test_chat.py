"""`shoal chat`: a conversation by lines of stdin, or with a user at a terminal."""

import io
import json
import os
import pty
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.data.chat_template import ChatTemplate
from shoal.data.tokenizer import read_tokenizer
from tests.cli.conftest import Outcome, Shoal
from tests.models.shapes import BERT
from tests.serve.languages import talkative, write_language_model, write_model
from tests.tasks.dialogues import write_decoder
from tests.tasks.texts import tokenizer

Chat = Callable[..., Outcome]


@pytest.fixture
def chat(shoal: Shoal, monkeypatch: pytest.MonkeyPatch) -> Chat:
    """Run `shoal chat WORDS` with these lines at its stdin."""

    def command(lines: str | bytes, *words: object) -> Outcome:
        given = lines.encode() if isinstance(lines, str) else lines
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        return shoal("chat", *words)

    return command


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random decoder with a chat template."""
    return write_decoder(tmp_path_factory.mktemp("chat") / "model", ChatTemplate.of(tokenizer()).tokenizer)


def test_each_line_is_answered_with_all_before_it_in_mind(chat: Chat, dialogues: Path) -> None:
    told = json.loads(chat("the sea\n\nall fish\n", dialogues, "--tokens", 5, "--system", "swim", "--json").out)
    roles = [(message["role"], message["content"]) for message in told["messages"]]
    assert [role for role, _ in roles] == ["system", "user", "assistant", "user", "assistant"]
    assert [text for role, text in roles if role == "user"] == ["the sea", "all fish"]
    assert [answer["tokens"] for answer in told["answers"]] == [5, 5]
    plain = chat("the sea\nall fish\n", dialogues, "--tokens", 5, "--system", "swim")
    assert plain.out == "".join(text + "\n" for role, text in roles if role == "assistant")
    assert (plain.code, plain.err) == (0, "")
    alone = json.loads(chat("all fish\n", dialogues, "--tokens", 5, "--temperature", 0, "--json").out)
    after = json.loads(chat("the sea\nall fish\n", dialogues, "--tokens", 5, "--temperature", 0, "--json").out)
    assert alone["messages"][-1] != after["messages"][-1]


def test_a_base_model_goes_on_with_one_text(chat: Chat, model: Path) -> None:
    told = json.loads(chat("the sea\\\nswims\nall\n", model, "--tokens", 4, "--json").out)
    parts = re.fullmatch(r"the sea\nswims(.{0,4})\nall(.{0,4})", told["text"], re.DOTALL)
    assert parts is not None
    assert chat("the sea\\\nswims\nall\n", model, "--tokens", 4).out == f"{parts[1]}\n{parts[2]}\n"


def test_commands_change_retry_forget_and_save_the_conversation(chat: Chat, dialogues: Path) -> None:
    lines = "the sea\n/retry\n/system swim\n/save one.json\n/reset\n//sea\n/save two.json\n/quit\nnever said\n"
    outcome = chat(lines, dialogues, "--tokens", 6, "--json")
    assert outcome.code == 0
    one, two = (json.loads(Path(name).read_text())["messages"] for name in ("one.json", "two.json"))
    assert [message["content"] for message in one][:2] == ["swim", "the sea"]
    assert len(one) == 3
    first = json.loads(chat("the sea\n", dialogues, "--tokens", 6, "--json").out)
    assert one[-1] != first["messages"][-1], "a retry is drawn anew"
    assert [message["content"] for message in two][:2] == ["swim", "/sea"]
    assert json.loads(outcome.out)["messages"] == two


def test_what_is_longer_than_the_context_loses_its_beginning_which_is_told_once(chat: Chat, dialogues: Path) -> None:
    outcome = chat("the sea and all the fish of it\n" * 6, dialogues, "--tokens", 100, "--json")
    assert outcome.err.count("left out from now on") == 1
    told = json.loads(outcome.out)
    assert len(told["answers"]) == 6
    assert all(1 <= answer["tokens"] <= 64 for answer in told["answers"])
    assert len(told["messages"]) == 12


WRONG = {
    "unknown command": ("/nothing\n", [], "/nothing is no command; /help tells them"),
    "nothing to retry": ("/retry\n", [], "/retry: there is no answer yet"),
    "a file that is there": ("/save there\n", [], "/save: "),
    "no file": ("/save\n", [], "/save: to which file?"),
    "not UTF-8": (b"\xff\n", [], "the message is not UTF-8 text"),
    "too long": ("the sea " * 99 + "\n", [], "the message has "),
    "no tokens": ("a\n", ["--tokens", "0"], "--tokens is 0"),
    "temperature": ("a\n", ["--temperature", "nan"], "temperature is nan"),
    "min-p": ("a\n", ["--min-p", "2"], "min-p is 2.0"),
    "weights": ("a\n", ["--weights", "int8"], "weights in int8 are computed with by Shoal's own library alone"),
    "stop": ("a\n", ["--stop", ""], "--stop is given an empty text"),
    "template": ("a\n", ["--chat-template", "nowhere"], "nowhere: no chat template can be read there"),
}


@pytest.mark.parametrize(("lines", "words", "expected"), WRONG.values(), ids=WRONG)
def test_what_can_not_be_is_told(
    chat: Chat, dialogues: Path, lines: str | bytes, words: list[str], expected: str, tmp_path: Path
) -> None:
    (tmp_path / "there").write_text("mine")
    outcome = chat(lines, dialogues, *words)
    assert (outcome.code, outcome.error.startswith(expected)) == (2, True), outcome.err
    assert (tmp_path / "there").read_text() == "mine"


def test_models_that_do_not_talk_are_told(chat: Chat, model: Path, tmp_path: Path) -> None:
    assert chat("a\n", "nowhere").error == "nowhere: no such model folder"
    assert chat("a\n", model, "--system", "swim").error.startswith(f"--system: {model} has no chat template")
    assert chat("/system swim\n", model).error.startswith("/system: a base model")
    words = read_tokenizer(model)
    write_language_model(tmp_path / "encoder", words, replace(BERT, vocabulary=words.vocabulary))
    assert "encoder" in chat("a\n", tmp_path / "encoder").error
    config = json.loads((model / "config.json").read_text())
    labelled = tmp_path / "labelled"
    labelled.mkdir()
    (labelled / "config.json").write_text(json.dumps(config | {"shoal_task": {"name": "translate"}}))
    assert "was fine-tuned for 'translate'" in chat("a\n", labelled).error


@pytest.mark.thorough
def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(tmp_path: Path) -> None:
    """In a real terminal: an answer stops, the program goes on, and what a model writes commands neither.

    The model's tokens are bytes, so it soon writes some that would.
    """
    write_model(tmp_path / "model", tokenizer(), talkative(tokenizer(), 4096))
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, "-m", "shoal", "chat", str(tmp_path), "--tokens", "100000"])
    seen = b""

    def until(wanted: bytes) -> None:
        nonlocal seen
        while wanted not in seen:
            seen += os.read(terminal, 4096)
        seen = seen.partition(wanted)[2]

    try:
        until(b"> ")
        os.write(terminal, b"the sea\n")
        until(b"the sea\r\n")
        while len(seen) < 1000:
            seen += os.read(terminal, 4096)
        assert re.search("[\u2400-\u2421]", seen.decode(errors="ignore"))
        assert b"\x1b" not in seen.replace(b"\x1b[?2004l", b""), "but for what readline says when a line was read"
        os.write(terminal, b"\x03")
        until(b"; stopped")
        os.write(terminal, b"/system\n")
        until(b"has no system prompt")
        until(b"> ")
        os.write(terminal, b"\x04")
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    except BaseException:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        raise
