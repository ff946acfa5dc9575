"""Talk with a model in the terminal: it answers as its chat template says, or, where it has none, continues your text.

    shoal chat runs/shakespeare-chat
    shoal chat runs/demo --temperature 0.7 --tokens 200
    printf 'Good morrow!\\nWho are you?\\n' | shoal chat runs/shakespeare-chat --json

Enter sends; a line that ends in \\ goes on in the next one, and lines that are pasted together are one message. Ctrl-C stops
an answer, Ctrl-D leaves; /help tells the other commands. Where input is no terminal, each of its lines is a message.
"""

import contextlib
import json
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, Any

import tyro
from rich.console import Console

from shoal.core.device import Device, find_device
from shoal.core.errors import InputError, ShoalError
from shoal.core.files import write_text
from shoal.core.native.decode import Format
from shoal.data.chat_template import ChatTemplate
from shoal.serve.dialogue import Continuation, Dialogue, History
from shoal.serve.engine import CAPACITY, make_engine
from shoal.serve.generation import load_language_model
from shoal.serve.request import Engine, Piece, Request
from shoal.serve.sampling import Sampling
from shoal.train.labelled_model import task_name

HELP = """\
/help          this
/retry         write the last answer anew
/reset         forget the conversation
/system TEXT   what the model is told before all else; without TEXT: nothing
/save FILE     write the conversation as a line of JSON, as shoal finetune or shoal prepare reads it
/quit          leave, as Ctrl-D does
A message that begins with / is written with //. A line that ends in \\ goes on in the next one."""

PASTED_SECONDS = 0.02
"""What follows a line within this time was pasted with it: nobody types as fast."""
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | dict.fromkeys(range(0x7F, 0xA0), 0x2421)
"""A terminal would obey what a model writes with these; they are shown as pictures."""


@dataclass(frozen=True)
class Arguments:
    """Options of `shoal chat`."""

    model: Annotated[Path, tyro.conf.Positional]
    """A run's folder, or a model's."""
    system: str = ""
    """What the model is told before all else."""
    chat_template: str = ""
    """A file with the chat template, in Jinja, in place of the model's own."""
    tokens: int = 512
    """Tokens of an answer at most."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = field(default_factory=Sampling)
    weights: Format = "fp32"
    """How weights are kept: fewer bits are read faster, and compute something a little else."""
    device: Device = "auto"
    """Where to compute; `auto`: on a GPU where there is one."""
    seed: int = 0
    """The same seed gives the same answers to the same messages."""
    stop: tuple[str, ...] = field(default_factory=tuple)
    """Strings to end an answer before."""
    json: bool = False
    """Print one JSON object, when all is said, and nothing else, on stdout."""
    debug: bool = False
    """Show tracebacks."""


def run(arguments: Arguments, overrides: list[str]) -> dict[str, Any]:
    """Answer until the user leaves; returns the conversation."""
    if arguments.tokens < 1:
        raise InputError(f"--tokens is {arguments.tokens}; accepted: a whole number above 0")
    if "" in arguments.stop:
        raise InputError("--stop is given an empty text, which every text has at its start")
    session = _open(arguments)
    try:
        if session.interactive:
            _converse(session)
        else:
            all(map(session.respond, _piped()))
    finally:
        session.engine.close(finish=False)
    return {"model": str(arguments.model), **session.history.row(), "answers": session.answers, "seed": arguments.seed}


def _open(arguments: Arguments) -> "Session":
    """`InputError` for a model that doesn't talk, and for options that it can't follow."""
    model = arguments.model
    if (task := task_name(model)) not in ("", "chat", "prefer"):
        raise InputError(
            f"{model}: was fine-tuned for '{task}', which is no conversation; shoal generate, or shoal evaluate with --data "
            "FILE, tells what it makes of a text"
        )
    language = load_language_model(model, find_device(arguments.device, arguments.weights))
    if not language.model.config.causal:
        raise InputError(f"{model}: an encoder, which sees both ways and writes no text")
    context = min(language.model.config.context, CAPACITY)
    history: History
    if arguments.chat_template or "chat_template" in language.tokenizer.config:
        template = ChatTemplate.of(language.tokenizer, arguments.chat_template)
        language = replace(language, tokenizer=template.tokenizer, stops=language.stops | template.ends)
        history = Dialogue(template, context, arguments.system)
    elif arguments.system:
        raise InputError(f"--system: {model} has no chat template, and so no system prompt; --chat-template FILE gives one")
    else:
        history = Continuation(language.tokenizer, context)
    return Session(arguments, history, make_engine(language, slots=1, capacity=context, weights=arguments.weights))


class Session:
    """A conversation with a model: commands, and answers, which are shown as they come."""

    def __init__(self, arguments: Arguments, history: History, engine: Engine) -> None:
        self.arguments, self.history, self.engine = arguments, history, engine
        self.interactive = sys.stdin.isatty() and not arguments.json
        self.answers: list[dict[str, Any]] = []
        """Of each how many tokens it has, and why it ends."""
        self._asked = 0
        self._told_cut = False
        self._saved: set[Path] = set()
        self._commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: note(HELP),
            "retry": self._retry,
            "reset": self._reset,
            "system": self._set_system,
            "save": self._save,
        }

    def respond(self, message: str) -> bool:
        """Do a command, or answer; whether to go on. `InputError` for what can't be done, which is then forgotten."""
        if message.startswith("/") and not message.startswith("//"):
            name, _, rest = message[1:].partition(" ")
            if name == "quit":
                return False
            if name not in self._commands:
                raise InputError(f"/{name} is no command; /help tells them, and // begins a message that begins with /")
            self._commands[name](rest.strip())
        else:
            self.history.say(message[1:] if message.startswith("//") else message)
            self._answer()
        return True

    def _retry(self, rest: str) -> None:
        if not self.answers:
            raise InputError("/retry: there is no answer yet")
        self.history.take_back()
        self.answers.pop()
        self._answer()

    def _reset(self, rest: str) -> None:
        self.history.reset()
        self.answers.clear()
        self._told_cut = False
        note("a new conversation")

    def _set_system(self, text: str) -> None:
        if not isinstance(self.history, Dialogue):
            raise InputError("/system: a base model, which only continues text, has no system prompt")
        self.history.set_system(text)
        note("the model is told this from now on" if text else "no system prompt from now on")

    def _save(self, name: str) -> None:
        if not name:
            raise InputError("/save: to which file? /save FILE")
        path = Path(name).expanduser().resolve()
        if path.exists() and path not in self._saved:
            raise InputError(f"/save: {path} is there already; choose another name")
        write_text(path, json.dumps(self.history.row(), ensure_ascii=False) + "\n")
        self._saved.add(path)
        note(f"written to {path}")

    def _answer(self) -> None:
        """Answer what was said last; where that can't be, it is forgotten."""
        try:
            prompt = self.history.prompt(self.arguments.tokens)
            seed = self.arguments.seed + self._asked
            request = Request(tuple(prompt), self.arguments.tokens, self.arguments.sampling, seed, self.arguments.stop)
            if self.history.cut and not self._told_cut:
                note("this is longer than the model reads: its beginning is left out from now on")
                self._told_cut = True
            text, last, rate = self._write(request)
        except BaseException:
            self.history.take_back()
            raise
        self._asked += 1
        if last.finish == "cancelled" and not text:
            self.history.take_back()
            note("stopped, and what you said is forgotten")
            return
        self.history.tell(text)
        self.answers.append({"tokens": last.tokens, "finish": last.finish})
        if self.interactive:
            note(self._told(last, rate))

    def _write(self, request: Request) -> tuple[str, Piece, float]:
        """(the answer, its last piece, tokens a second after the first), shown as it comes.

        Ctrl-C stops it where the user is there to go on; else all.
        """
        pieces: SimpleQueue[Piece] = SimpleQueue()
        ticket = self.engine.submit(request, pieces.put)
        text, first, began = "", 0, 0.0
        with _ctrl_c(ticket.cancel) if self.interactive else contextlib.nullcontext():
            while True:
                piece = pieces.get()
                if piece.finish == "failed":
                    raise ShoalError(f"the answer could not be written: {piece.text}")
                if not first:
                    first, began = piece.tokens, time.perf_counter()
                text += piece.text
                self._show(piece.text)
                if piece.finish is not None:
                    self._show("\n")
                    return text, piece, (piece.tokens - first) / max(time.perf_counter() - began, 1e-9)

    def _show(self, text: str) -> None:
        if not self.arguments.json:
            sys.stdout.write(text.translate(CONTROLS) if sys.stdout.isatty() else text)
            sys.stdout.flush()

    def _told(self, last: Piece, rate: float) -> str:
        """How long an answer is, how fast it was written, and why it ended, where not by itself."""
        ends = {
            "length": "; as long as --tokens allows" if last.tokens >= self.arguments.tokens else "; the context is full",
            "cancelled": "; stopped",
        }
        return f"{last.tokens:,} tokens, {rate:,.0f} tokens/s{ends.get(last.finish or '', '')}"


def _converse(session: Session) -> None:
    """With a user at a terminal: what goes wrong is told, and the conversation goes on."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (from then on input() edits lines, and remembers them)
    if isinstance(session.history, Dialogue):
        note("a chat model; /help tells the commands, Ctrl-D leaves")
    else:
        note(
            "a base model: it doesn't answer, it continues what you write, and an empty line lets it go on; /help tells the "
            "commands, Ctrl-D leaves"
        )
    while True:
        try:
            message = _typed()
        except EOFError:
            note("")
            return
        except KeyboardInterrupt:
            note("\nCtrl-D leaves")
            continue
        except InputError as error:
            note(str(error))
            continue
        try:
            if not session.respond(message):
                return
        except KeyboardInterrupt:  # before the answer began
            note("\nstopped, and what you said is forgotten")
        except ShoalError as error:
            note(str(error))


@contextlib.contextmanager
def _ctrl_c(act: Callable[[], None]) -> Iterator[None]:
    """Meanwhile it does this, and interrupts nothing."""
    before = signal.signal(signal.SIGINT, lambda *_: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _typed() -> str:
    """A message: lines up to one that doesn't end in a backslash, and that nothing follows at once."""
    lines: list[str] = []
    while True:
        line = input("… " if lines else "> ")
        lines.append(line.removesuffix("\\"))
        if not line.endswith("\\") and not select.select([sys.stdin], [], [], PASTED_SECONDS)[0]:
            return _utf8("\n".join(lines).encode(errors="surrogateescape"))


def _piped() -> Iterator[str]:
    """Messages: a line each, but for those that end in a backslash; empty ones are none."""
    message = b""
    for line in sys.stdin.buffer:
        message += line.rstrip(b"\r\n")
        if message.endswith(b"\\"):
            message = message[:-1] + b"\n"
            continue
        if message.strip():
            yield _utf8(message)
        message = b""
    if message.strip():
        yield _utf8(message)


def _utf8(message: bytes) -> str:
    try:
        return message.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"the message is not UTF-8 text: {error}") from None


def note(text: str) -> None:
    """Tell the user something that nobody said."""
    console = Console(stderr=True, highlight=False, markup=False)
    console.print(text, style="dim", soft_wrap=not console.is_terminal)
