"""`shoal VERB …`: find the verb's command, run it, and turn every outcome into words and an exit code.

0 done, 1 failed, 2 usage or bad input, 130 interrupted. With --json, stdout holds one JSON object and nothing else.
"""

import errno
import importlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any

from shoal import __version__
from shoal.core.errors import Interrupted, ShoalError

VERBS = {
    "demo": "the main job, end to end, in minutes, with nothing to download",
    "prepare": "text to a tokenized, sharded corpus",
    "pretrain": "train a language model from scratch, or go on from a checkpoint",
    "finetune": "adapt a model to a task by labelled examples",
    "evaluate": "held-out loss and bits per byte of a model",
    "export": "write a model for transformers, llama.cpp, onnxruntime or torch",
    "ledger": "prove which samples a run has read: none lost, none repeated",
    "generate": "continue a prompt",
    "plan": "memory, time and network that a recipe will take on this machine, and its learning rate",
    "bench": "is every division the same training here, and how fast are methods on slow links",
    "doctor": "what is installed, what works here, what to do about what does not",
}

USAGE = """\
Shoal {version}: train, adapt and serve language models with data parallelism.

  shoal VERB [RECIPE.yaml] [--section.key value ...]

{verbs}

  shoal VERB --help     options, recipe keys and an example
  shoal --version

Start with: shoal demo"""


def main(words: Sequence[str] | None = None) -> None:
    """Entry point of the `shoal` command."""
    # before torch is imported: its C++ side tells of every broken connection with a stack, beside our message
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    words = list(sys.argv[1:] if words is None else words)
    if "--debug" not in words:  # a library's thread, as TensorBoard's on a full disk
        threading.excepthook = lambda failed: print(f"shoal: a thread ended: {failed.exc_value}", file=sys.stderr)  # noqa: T201
    sys.exit(run(words))


def run(words: list[str]) -> int:
    """Run one command line; returns the exit code."""
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except ShoalError as error:
        return _report(error, error.exit_code, str(error), words)
    except KeyboardInterrupt as error:
        return _report(error, Interrupted.exit_code, "interrupted", words)
    except BrokenPipeError:
        # whoever read our output has left; nothing more can be said there
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return _report(error, 1, _unexpected(error, words), words)
        text = f"{error.filename or 'a file'} could not be written: {error.strerror}; make room there, then go on"
        return _report(error, 1, f"{text} from what is finished (pretrain: --resume)", words)
    except Exception as error:
        return _report(error, 1, _unexpected(error, words), words)


def _unexpected(error: Exception, words: list[str]) -> str:
    return f"unexpected {type(error).__name__}: {error}" + ("" if "--debug" in words else " (--debug shows where)")


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        verbs = "\n".join(f"  {verb:<10}{meaning}" for verb, meaning in VERBS.items())
        print(USAGE.format(version=__version__, verbs=verbs))  # noqa: T201
        return 0
    if words[0] in ("-V", "--version"):
        print(f"shoal {__version__}")  # noqa: T201
        return 0
    if words[0] not in VERBS:
        return _fail(f"'{words[0]}' is not a verb; there are: {', '.join(VERBS)}" + _nearest(words[0]), 2)
    return _run_verb(words[0], words[1:])


def _run_verb(verb: str, words: list[str]) -> int:
    from shoal.arguments import parse

    command = importlib.import_module(f"shoal.commands.{verb}")
    try:
        arguments, overrides = parse(verb, command, words)
    except SystemExit as leaving:  # it has printed help, or what is wrong
        return leaving.code if isinstance(leaving.code, int) else 0
    result: dict[str, Any] | None = command.run(arguments, overrides)
    if result is not None and arguments.json:
        print(json.dumps(result, ensure_ascii=False))  # noqa: T201
    return 0


def _report(error: BaseException, code: int, text: str, words: list[str]) -> int:
    """Say it once: a rank leaves its message for the launcher, where there is one."""
    if "--debug" in words:
        traceback.print_exception(error)
    rank = os.environ.get("RANK")
    if rank is not None:
        from shoal.parallel.heartbeat import StalledError
        from shoal.parallel.launch import leave_message
        from shoal.parallel.wire import PeerLostError
        from shoal.parallel.world import UnreachableError

        secondary = isinstance(error, PeerLostError | UnreachableError)
        missing = error.missing if isinstance(error, StalledError) else []
        if leave_message(int(rank), text, code, secondary=secondary, missing=missing) and code != Interrupted.exit_code:
            return code
        if (secondary or code == Interrupted.exit_code) and rank != "0":
            return code
    return _fail(text, code) if text else code


def _fail(text: str, code: int) -> int:
    word = "shoal" if code == Interrupted.exit_code else "shoal: error"
    print(f"{word}: {text}", file=sys.stderr)  # noqa: T201
    return code


def _nearest(verb: str) -> str:
    import difflib

    near = difflib.get_close_matches(verb, VERBS, 1)
    return f". Did you mean '{near[0]}'?" if near else ""
