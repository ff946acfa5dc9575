"""Continue a prompt with a model that Shoal wrote, or any folder in the Hugging Face layout; or fill in what is blank.

    shoal generate runs/demo --prompt "def main():" --tokens 100
    shoal generate runs/bert-demo --prompt "for name [MASK] names:"
    shoal generate runs/infill-demo --prompt "x = [MASK] + 1"
    shoal generate MODEL --prompt "The fish, as JSON: " --json-schema fish.json --temperature 0

With `[MASK]` in the prompt an encoder tells the likeliest words there, and a decoder that was trained to fill in writes what
could stand between. A model that was fine-tuned to translate, or to complete prompts, is asked as it was trained: the prompt
is the source alone, and the answer is what its evaluations would write, by its own beams.
"""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from shoal.core.device import Device, find_device
from shoal.core.errors import InputError
from shoal.core.files import read_json
from shoal.core.native.decode import Format
from shoal.serve.filling import BLANK, Layout, fill_masks, read_layout
from shoal.serve.generation import LanguageModel, generate, load_language_model
from shoal.serve.request import Constraint
from shoal.serve.samples import make_samples, told
from shoal.serve.sampling import Sampling
from shoal.tasks.continuation import Continuation
from shoal.train.labelled_model import LabelledModel, is_labelled, read_labelled_model


@dataclass(frozen=True)
class Arguments:
    """Options of `shoal generate`."""

    model: Annotated[Path, tyro.conf.Positional]
    """A run's folder, or a model's."""
    prompt: str = ""
    """What to continue, or a text with `[MASK]` in it; `-` reads it from stdin."""
    tokens: int = 100
    """Tokens to add at most."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = field(default_factory=Sampling)
    beams: int = 1
    """Above 1: search for the likeliest text, by so many beginnings at once, and draw nothing."""
    weights: Format = "fp32"
    """How weights are kept: fewer bits are read faster, and compute something a little else."""
    device: Device = "auto"
    """Where to compute; `auto`: on a GPU where there is one."""
    seed: int = 0
    """The same seed gives the same text."""
    stop: tuple[str, ...] = field(default_factory=tuple)
    """Strings to end before."""
    json_schema: Path | None = None
    """A file with a JSON schema: the text is JSON of it."""
    regex: str = ""
    """A regular expression that the text matches, from its first character to its last."""
    json: bool = False
    """Print one JSON object, and nothing else, on stdout."""
    debug: bool = False
    """Show tracebacks."""


def run(arguments: Arguments, overrides: list[str]) -> dict[str, Any]:
    """Print the continuation as it comes; returns prompt and text."""
    if arguments.tokens < 1:
        raise InputError(f"--tokens is {arguments.tokens}; accepted: a whole number above 0")
    if "" in arguments.stop:
        raise InputError("--stop is given an empty text, which every text has at its start")
    if arguments.beams < 1:
        raise InputError(f"--beams is {arguments.beams}; accepted: a whole number above 0")
    constraint = _read_constraint(arguments)
    prompt = _read_prompt(arguments.prompt)
    if is_labelled(arguments.model):
        labelled = read_labelled_model(arguments.model, device=find_device(arguments.device, arguments.weights))
        if labelled.name not in ("chat", "prefer"):  # these go on with a text as any decoder does
            _refuse_what_goes_on(arguments, constraint, f"and a model of task '{labelled.name}' answers as it was trained")
            return _answer(arguments, labelled, prompt)
    language = load_language_model(arguments.model, find_device(arguments.device, arguments.weights))
    layout = read_layout(arguments.model)
    if not language.model.config.causal or (layout is not None and BLANK in prompt):
        _refuse_what_goes_on(arguments, constraint, "not for blanks")
        return _fill(arguments, language, prompt, layout)
    continuation = generate(
        language, prompt, arguments.tokens, arguments.sampling, arguments.seed, arguments.stop, constraint, arguments.beams,
        arguments.weights,
    )  # fmt: skip
    pieces = [next(continuation, "")]  # a prompt that can't be used is told before anything is printed
    if not arguments.json:
        _write(prompt + pieces[0])
    for piece in continuation:
        pieces.append(piece)
        if not arguments.json:
            _write(piece)
    if not arguments.json:
        _write("\n")
    return {"model": str(arguments.model), "prompt": prompt, "text": "".join(pieces), "seed": arguments.seed}


def _refuse_what_goes_on(arguments: Arguments, constraint: Constraint | None, instead: str) -> None:
    """`InputError` for options that would have no effect."""
    if constraint is not None or arguments.beams > 1 or arguments.stop or arguments.weights != "fp32":
        raise InputError(f"--json-schema, --regex, --beams, --stop and --weights are for texts that go on, {instead}")


def _answer(arguments: Arguments, labelled: LabelledModel, prompt: str) -> dict[str, Any]:
    """Print what a fine-tuned model writes."""
    if not isinstance(labelled.task, Continuation):
        raise InputError(
            f"{arguments.model}: was fine-tuned for '{labelled.name}', which writes no text; "
            f"shoal evaluate {arguments.model} --data FILE tells what it predicts"
        )
    given = labelled.task.roles[0].name
    if not prompt.strip():
        raise InputError(
            f"no {given}: a model of task '{labelled.name}' is given it by --prompt TEXT, and nothing around it"
        )
    text = labelled.task.answer(labelled.model, prompt, arguments.tokens)
    if not arguments.json:
        _write(text + "\n")
    return {"model": str(arguments.model), "prompt": prompt, "text": text, "seed": arguments.seed}


def _fill(arguments: Arguments, language: LanguageModel, prompt: str, layout: Layout | None) -> dict[str, Any]:
    """Print the prompt with what belongs at its blanks."""
    result: dict[str, Any] = {"model": str(arguments.model), "prompt": prompt, "seed": arguments.seed}
    if language.model.config.causal:
        sample = make_samples(language, [prompt], arguments.tokens, arguments.sampling, arguments.seed, layout)[0]
    else:
        found = fill_masks(language, prompt)
        sample = {"prompt": prompt, "text": told(found)}
        result["guesses"] = [[asdict(guess) for guess in guesses] for guesses in found]
    if not arguments.json:
        _write(sample["prompt"] + sample["text"] + sample.get("after", "") + "\n")
    return {**result, "text": sample["text"]}


def _read_constraint(arguments: Arguments) -> Constraint | None:
    if arguments.json_schema is not None and arguments.regex:
        raise InputError("--json-schema and --regex are both given; a text follows one of them")
    if arguments.json_schema is not None:
        return Constraint("json_schema", read_json(arguments.json_schema))
    return Constraint("regex", arguments.regex) if arguments.regex else None


def _read_prompt(given: str) -> str:
    try:
        prompt = sys.stdin.read() if given == "-" else given
        prompt.encode()
    except UnicodeError as error:
        raise InputError(f"the prompt is not UTF-8 text: {error}") from None
    return prompt


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
