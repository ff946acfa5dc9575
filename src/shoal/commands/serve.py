"""Serve a model over HTTP: OpenAI's interface, with a page to try it on.

    shoal serve runs/demo
    shoal serve runs/chat --port 9000 --slots 16
    shoal serve runs/sst2 --host 0.0.0.0 --api-key-file key.txt

A decoder answers /v1/chat/completions (where it has a chat template) and /v1/completions; an encoder /v1/embeddings, and
/v1/classify or /v1/tag where it was fine-tuned to that. The page is at /, the interface's description at /docs. Only this
machine is answered, unless --host says otherwise, and then requests need a key.
"""

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape

from shoal.core.device import Device, find_device
from shoal.core.errors import InputError, Interrupted
from shoal.core.extras import library
from shoal.core.model_directory import find_model_directory
from shoal.core.native.decode import Format
from shoal.data.chat_template import ChatTemplate
from shoal.data.examples.texts import framing_tokenizer
from shoal.data.tokenizer import TextTokenizer
from shoal.serve.embedding import Embedder, takes_first_token
from shoal.serve.engine import CAPACITY, make_engine
from shoal.serve.generation import LanguageModel, load_language_model
from shoal.serve.http.limits import Limits
from shoal.serve.http.served import Kind, Served, Writer
from shoal.serve.labelling import Labeller
from shoal.tasks import Classify, Tag
from shoal.tasks.continuation import Continuation
from shoal.train.labelled_model import LabelledModel, is_labelled, read_labelled_model

KEY = "SHOAL_API_KEY"
"""Where the key is, if it isn't said otherwise: in the environment."""


@dataclass(frozen=True)
class Arguments:
    """Options of `shoal serve`."""

    model: Annotated[Path, tyro.conf.Positional]
    """A run's folder, or a model's."""
    host: str = "127.0.0.1"
    """The address to listen on; any other than this machine's own needs a key."""
    port: int = 8000
    """The port to listen on (0: any that is free)."""
    name: str = ""
    """What requests call the model; its folder's name by default."""
    api_key: str = ""
    """What every request must bring. Who lists this machine's processes sees it here, but not in a file, or in the
    environment as SHOAL_API_KEY."""
    api_key_file: Path | None = None
    """A file that holds the key."""
    chat_template: Path | None = None
    """A file with the chat template, in Jinja, in place of the model's own."""
    slots: int = 8
    """Texts that are written at once; more wait."""
    context: int = 0
    """Tokens of a prompt and its answer (0: as many as the model sees, 4096 at most)."""
    weights: Format = "fp32"
    """How a decoder's weights are kept."""
    device: Device = "auto"
    """Where to compute; `auto`: on a GPU where there is one."""
    queue: int = 64
    """Texts, or requests to an encoder, that may wait; more are told to come again (429)."""
    requests: int = 256
    """Requests that may be open at once; more are told to come again (503)."""
    max_body: int = 1 << 20
    """Bytes of a request (413)."""
    max_prompt: int = 0
    """Tokens of a prompt, or of an encoder's text (400; 0: the context)."""
    max_tokens: int = 0
    """Tokens of an answer (400; 0: the context)."""
    timeout: float = 600.0
    """Seconds that an answer may take."""
    grace: float = 120.0
    """Seconds that answers have to end, once the server is asked to stop."""
    json: bool = False
    """Print one JSON object, with the address, on stdout when the server answers, and nothing else there."""
    debug: bool = False
    """Show tracebacks."""


def run(arguments: Arguments, overrides: list[str]) -> None:
    """Serve until SIGTERM or SIGINT."""
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        library(module, "serve")
    from shoal.serve.http.app import build_app
    from shoal.serve.http.guard import is_local
    from shoal.serve.http.server import bind, make_server

    if not 0 <= arguments.port < 1 << 16:
        raise InputError(f"--port is {arguments.port}; accepted: 0 to 65535")
    limits = Limits(
        body=arguments.max_body,
        prompt=arguments.max_prompt,
        tokens=arguments.max_tokens,
        queue=arguments.queue,
        requests=arguments.requests,
        seconds=arguments.timeout,
        grace_seconds=arguments.grace,
    )
    key = _key(arguments)
    if not key and not is_local(arguments.host):
        raise InputError(
            f"--host {arguments.host} lets other machines in, so requests need a key: --api-key-file FILE, or {KEY} in the "
            "environment"
        )
    socket = bind(arguments.host, arguments.port)
    with socket:
        served = read_served(arguments)
        host, port = socket.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

        def ready() -> None:
            if arguments.json:
                told = {"model": served.name, "kind": served.kind, "url": address}
                sys.stdout.write(json.dumps(told) + "\n")
                sys.stdout.flush()
            Console(stderr=True, highlight=False).print(
                f"[bold]{escape(served.name)}[/bold] ({served.kind}) is served at [bold]{address}[/bold]; Ctrl-C stops it",
                soft_wrap=True,
            )

        server = make_server(build_app(served, limits, key), limits, ready)
        server.run([socket])
    if server.interrupted:
        raise Interrupted("stopped")


def read_served(arguments: Arguments) -> Served:
    """The model of the folder, with what it can do; `InputError` where that is nothing that can be served."""
    folder = find_model_directory(arguments.model)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such model folder")
    place = arguments.model.resolve()
    name = arguments.name or (place.parent if place.name == "model" else place).name
    config = folder / "config.json"
    created = int(config.stat().st_mtime) if config.exists() else 0
    if is_labelled(arguments.model):
        labelled = read_labelled_model(arguments.model, device=find_device(arguments.device, arguments.weights))
        if isinstance(labelled.task, Classify | Tag):
            return _labelling(labelled, labelled.task, name, created)
        if isinstance(labelled.task, Continuation):
            return _answering(arguments, labelled, labelled.task, name, created)
        if labelled.name == "answer":
            raise InputError(
                f"{arguments.model}: was fine-tuned for '{labelled.name}', which has no place in OpenAI's interface; "
                f"shoal evaluate {arguments.model} --data FILE tells what it predicts"
            )
    language = load_language_model(arguments.model, find_device(arguments.device, arguments.weights))
    if not language.model.config.causal:
        embedder = Embedder(language.model, _framing(language), takes_first_token(folder))
        return Served(name, "embeddings", language.model.config.context, created, embedder=embedder)
    template = _template(arguments, language)
    if template is not None:
        language = LanguageModel(language.model, template.tokenizer, language.stops | template.ends)
    tokenizer = language.tokenizer  # of the model only what the engine computes with is kept
    writer = _writer(arguments, language, lambda text: tokenizer.encode(text).tolist(), template)
    return Served(name, "completion" if template is None else "chat", writer.context, created, writer=writer)


def _labelling(labelled: LabelledModel, task: Classify | Tag, name: str, created: int) -> Served:
    """A model that tells labels, and, as an encoder, embeddings."""
    model = labelled.model
    embedder = None if model.config.causal else Embedder(model, labelled.tokenizer)
    labeller = Labeller(model, task)
    kind: Kind = "classify" if isinstance(task, Classify) else "tag"
    return Served(name, kind, model.config.context, created, labeller.labels, embedder=embedder, labeller=labeller)


def _answering(arguments: Arguments, labelled: LabelledModel, task: Continuation, name: str, created: int) -> Served:
    """A model that was taught what follows from a text, which its prompts are laid out for."""
    language = LanguageModel(labelled.model, task.tokenizer)

    def encode(text: str) -> list[int]:
        tokens = len(task.tokenizer.encode(text))
        if tokens > task.room:
            raise InputError(f"the {task.roles[0].name} has {tokens} tokens; accepted are up to {task.room}")
        return task.prompt(text).tolist()

    writer = _writer(arguments, language, encode, None, task.settings.prefix)
    return Served(name, "completion", writer.context, created, writer=writer)


def _writer(
    arguments: Arguments,
    language: LanguageModel,
    encode: Callable[[str], list[int]],
    template: ChatTemplate | None,
    both_ways: bool = False,
) -> Writer:
    """The engine of a decoder; `both_ways`: what it is given sees itself so."""
    context = min(arguments.context or CAPACITY, language.model.config.context)
    engine = make_engine(language, arguments.slots, context, arguments.queue, weights=arguments.weights, both_ways=both_ways)
    encode("a")  # builds the encoder: else the first prompt would, and all that is there would wait
    with suppress(InputError):  # not installed: who asks for JSON is told so
        engine.ready_constraints()  # else the first who asks for it would stop all others for a moment
    return Writer(engine, language.tokenizer, arguments.slots, context, encode, template)


def _template(arguments: Arguments, language: LanguageModel) -> ChatTemplate | None:
    """The chat template that is given, or the model's own; None: it has none."""
    if arguments.chat_template is not None:
        return ChatTemplate.of(language.tokenizer, str(arguments.chat_template))
    return ChatTemplate.of(language.tokenizer) if "chat_template" in language.tokenizer.config else None


def _framing(language: LanguageModel) -> TextTokenizer:
    return framing_tokenizer(language.tokenizer, language.model.config.causal)


def _key(arguments: Arguments) -> str:
    """The key that requests must bring; `InputError` for one that no header can hold."""
    if arguments.api_key and arguments.api_key_file is not None:
        raise InputError("--api-key and --api-key-file both say the key; give one of them")
    key, source = arguments.api_key or os.environ.get(KEY, ""), "--api-key" if arguments.api_key else KEY
    if arguments.api_key_file is not None:
        source = str(arguments.api_key_file)
        try:
            key = arguments.api_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{source}: no key can be read there: {error}") from None
        if not key:
            raise InputError(f"{source}: holds no key")
    if not all("!" <= character <= "~" for character in key):
        raise InputError(f"{source}: a key is of letters, digits and signs of ASCII, without spaces")
    return key
