"""`shoal serve`: which folders it serves, and how; and what it can't serve, told before anything listens."""

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from weakref import ReferenceType, ref

import httpx
import pytest
import torch

from shoal.commands.serve import Arguments, read_served
from shoal.core.files import read_json, write_json
from shoal.core.machine import cpp_compiler
from shoal.data.chat_template import ChatTemplate
from shoal.data.tokenizer import TextTokenizer
from shoal.models.config import TransformerConfig
from shoal.models.transformer import Transformer
from shoal.serve.generation import LanguageModel, load_language_model
from shoal.serve.http.served import Served
from shoal.serve.request import Piece, Request
from shoal.serve.sampling import Sampling
from shoal.tasks.continuation import Continuation
from shoal.train.labelled_model import read_labelled_model
from tests.cli.conftest import Shoal
from tests.models.shapes import BERT, GPT2
from tests.serve.languages import write_language_model
from tests.tasks.labelled import wordpiece
from tests.tasks.texts import tokenizer


def write(folder: Path, words: TextTokenizer, config: TransformerConfig, **said: Any) -> Path:
    """A random model whose `config.json` says something more."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_language_model(folder, words, replace(config, vocabulary=words.vocabulary, context=64))
    write_json(folder / "config.json", read_json(folder / "config.json") | said)
    return folder


def read(folder: Path, **options: Any) -> Served:
    """What is served of it; its engine is ended."""
    served = read_served(Arguments(folder, **options))
    if served.writer is not None:
        served.writer.engine.close()
    return served


def test_a_decoder_chats_if_it_has_a_template(tmp_path: Path) -> None:
    served = read(write(tmp_path / "base", tokenizer(), GPT2), slots=2)
    assert (served.name, served.kind, served.context, served.labels) == ("base", "completion", 64, None)
    template = ChatTemplate.of(tokenizer())
    served = read(write(tmp_path / "run" / "model", template.tokenizer, GPT2).parent, context=40)
    assert (served.name, served.kind, served.context) == ("run", "chat", 40)
    file = tmp_path / "template.jinja"
    file.write_text("{% for message in messages %}{{ message.content }}\n{% endfor %}")
    served = read(tmp_path / "base", chat_template=file, name="mine")
    assert (served.name, served.kind) == ("mine", "chat")


def test_an_encoder_embeds_and_what_was_fine_tuned_labels(tmp_path: Path) -> None:
    assert read(write(tmp_path / "bert", wordpiece(), BERT)).kind == "embeddings"
    scored = replace(BERT, transform=False, head_bias=False)
    for kind, settings, head in (
        ("classify", {"labels": ["no", "yes"]}, {"head": "sequence", "outputs": 2}),
        ("tag", {"types": ["PER"], "learned": "bio", "scheme": "bio"}, {"head": "token", "outputs": 3, "pooler": False}),
    ):
        said = {"name": kind, "length": 64, "settings": settings}
        served = read(write(tmp_path / kind, wordpiece(), replace(scored, **head), shoal_task=said))  # type: ignore[arg-type]
        assert (served.kind, served.labels) == (kind, settings.get("labels") or settings.get("types"))
        assert served.embedder is not None and served.labeller is not None


def test_a_model_that_was_taught_answers_is_asked_as_it_was_taught(tmp_path: Path) -> None:
    said = {"name": "generate", "length": 64, "settings": {"tokens": 20}}
    served = read(write(tmp_path / "taught", tokenizer(), GPT2, shoal_task=said))
    assert served.kind == "completion" and served.writer is not None
    assert list(served.writer.encode("a fish"))[-1:] != tokenizer().encode("a fish").tolist()[-1:]


@pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")
def test_weights_in_fewer_bits_take_the_place_of_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[ReferenceType[Transformer]] = []

    def load(folder: Path, device: torch.device) -> LanguageModel:
        language = load_language_model(folder, device)
        models.append(ref(language.model))
        return language

    monkeypatch.setattr("shoal.commands.serve.load_language_model", load)
    shape = replace(GPT2, dim=32, heads=2, kv_heads=2, head_dim=16, hidden=64)
    served = read(write(tmp_path / "base", tokenizer(), shape), weights="int8")
    gc.collect()
    assert served.kind == "completion"
    assert models[0]() is None


def test_what_was_taught_to_see_its_prompt_both_ways_is_served_so(tmp_path: Path) -> None:
    said = {"name": "generate", "length": 64, "settings": {"tokens": 8, "prefix": True}}
    folder = write(tmp_path / "both", tokenizer(), GPT2, shoal_task=said)
    labelled = read_labelled_model(folder)
    assert isinstance(labelled.task, Continuation)
    served = read_served(Arguments(folder, slots=2))
    assert served.writer is not None
    pieces: SimpleQueue[Piece] = SimpleQueue()
    for given in ("the shoal swims", "the shoal", "the shoal swims"):  # begin alike, and are other prefixes
        prompt = served.writer.encode(given)
        served.writer.engine.submit(Request(tuple(prompt), 8, Sampling(0)), pieces.put)
        text = ""
        while (piece := pieces.get()).finish is None:
            text += piece.text
        [expected] = labelled.task.write(labelled.model, [prompt])
        assert text + piece.text == labelled.task.tokenizer.decode(expected)
    served.writer.engine.close()


def test_what_can_not_be_served_is_told(shoal: Shoal, model: Path, tmp_path: Path) -> None:
    assert "no such model folder" in shoal("serve", tmp_path / "nothing", "--port", 0).error
    (tmp_path / "empty").mkdir()
    assert "it has no config.json" in shoal("serve", tmp_path / "empty", "--port", 0).error
    cut = write(tmp_path / "cut", tokenizer(), GPT2)
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "model.safetensors" in shoal("serve", cut, "--port", 0).error
    other = write(tmp_path / "other", tokenizer(), GPT2, model_type="t5", architectures=["T5ForConditionalGeneration"])
    assert "t5" in shoal("serve", other, "--port", 0).error
    said = {"name": "answer", "length": 64, "settings": {}}
    spans = replace(BERT, transform=False, head_bias=False, pooler=False, head="span", outputs=2)
    answers = write(tmp_path / "answers", wordpiece(), spans, shoal_task=said)
    assert "no place in OpenAI's interface" in shoal("serve", answers, "--port", 0).error


def test_options_that_can_not_be_are_told(
    shoal: Shoal, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(*words: object) -> str:
        return shoal("serve", model, *words).error

    monkeypatch.delenv("SHOAL_API_KEY", raising=False)
    assert "accepted: 0 to 65535" in error("--port", 70000)
    assert "requests need a key" in error("--port", 0, "--host", "0.0.0.0")
    assert "can't listen on nowhere.invalid" in error("--host", "nowhere.invalid", "--api-key", "k")
    assert "both say the key" in error("--api-key", "k", "--api-key-file", tmp_path / "key")
    assert "no key can be read there" in error("--api-key-file", tmp_path / "key")
    (tmp_path / "key").write_text("\n")
    assert "holds no key" in error("--api-key-file", tmp_path / "key")
    assert "without spaces" in error("--api-key", "a b")
    monkeypatch.setenv("SHOAL_API_KEY", "schlüssel")
    assert "SHOAL_API_KEY: a key is of letters" in error("--port", 0)
    monkeypatch.delenv("SHOAL_API_KEY")
    assert "no chat template can be read there" in error("--port", 0, "--chat-template", tmp_path / "none.jinja")
    assert "slots is 0" in error("--port", 0, "--slots", 0)
    assert "'body' is 0" in error("--port", 0, "--max-body", 0)


def test_without_the_extra_it_is_told_how_to_get_it(shoal: Shoal, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'shoal[serve]'" in shoal("serve", model).error


@dataclass(frozen=True)
class Process:
    """`shoal serve`, as it says of itself."""

    process: "subprocess.Popen[str]"
    told: dict[str, str]


@contextmanager
def process_of(model: Path, *words: str) -> Iterator[Process]:
    """A real one, killed at the latest when the test is over."""
    command = [sys.executable, "-m", "shoal", "serve", str(model), "--port", "0", "--json", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield Process(process, json.loads(process.stdout.readline()))
        finally:
            process.kill()


@pytest.mark.thorough
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_lets_answers_end_first(tmp_path: Path, number: signal.Signals, code: int) -> None:
    folder = write(tmp_path / "base", tokenizer(), replace(GPT2, context=64))
    with process_of(folder, "--slots", "1") as server:
        body = {"model": "base", "prompt": "the shoal", "max_tokens": 50, "temperature": 0, "stream": True, "n": 2}
        assert server.told["kind"] == "completion"
        with httpx.stream("POST", f"{server.told['url']}/v1/completions", json=body, timeout=60) as reply:
            lines = []
            for line in reply.iter_lines():
                if not lines:
                    server.process.send_signal(number)
                lines.append(line)
        assert "data: [DONE]" in lines
        out, err = server.process.communicate(timeout=60)
        assert server.process.returncode == code
    assert out == ""
    assert "Traceback" not in err
    assert "base (completion) is served at http://127.0.0.1:" in err.replace("\n", " ")


@pytest.mark.thorough
def test_a_second_interrupt_ends_at_once_and_quietly(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    write_language_model(folder, tokenizer(), replace(GPT2, vocabulary=tokenizer().vocabulary, context=8192))
    with process_of(folder, "--slots", "1", "--context", "8192") as server:
        body = {"model": "base", "prompt": "the shoal", "max_tokens": 8000, "temperature": 0, "stream": True}
        with httpx.stream("POST", f"{server.told['url']}/v1/completions", json=body, timeout=60) as reply:
            lines = reply.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGINT)
            with pytest.raises(httpx.ConnectError):  # the first lets nobody in any more
                while True:
                    httpx.get(f"{server.told['url']}/health")
            server.process.send_signal(signal.SIGINT)
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        _, err = server.process.communicate(timeout=60)
        assert server.process.returncode == 130
    assert "ERROR" not in err and "Traceback" not in err


@pytest.mark.thorough
def test_a_port_that_is_taken_is_told_before_the_model_is_read(shoal: Shoal, tmp_path: Path) -> None:
    folder = write(tmp_path / "base", tokenizer(), GPT2)
    with process_of(folder) as server:
        port = httpx.URL(server.told["url"]).port
        assert f"can't listen on 127.0.0.1, port {port}" in shoal("serve", tmp_path / "nothing", "--port", port).error
