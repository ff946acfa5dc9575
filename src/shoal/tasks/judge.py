"""Which of two replies is the better one, by a command of the user's: a person at a terminal, a larger model, a rule.

It gets one JSON object, `{"prompt": [{"role": …, "content": …}, …], "ours": text, "reference": text}`, on its standard
input, and answers `ours`, `reference` or `tie`. Judges are known to like what they see first (Zheng et al. 2023,
arXiv:2306.05685): so for half of the dialogues, chosen by a hash of each, the two replies stand under each other's names.
"""

import json
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shoal.core.errors import InputError
from shoal.core.seeds import derive_seed
from shoal.data.chat_template import Turn

Verdict = Literal["ours", "reference", "tie"]

EXCHANGED: dict[str, Verdict] = {"ours": "reference", "reference": "ours", "tie": "tie"}


@dataclass(frozen=True)
class Judge:
    """A command, and how long it may take over one answer, in seconds."""

    command: tuple[str, ...]
    seconds: float

    @classmethod
    def of(cls, command: str, seconds: float) -> "Judge":
        """From a command line; `InputError` where there is no such program."""
        try:
            words = tuple(shlex.split(command))
        except ValueError as error:
            raise InputError(f"chat.judge: {command!r} is no command line: {error}") from None
        if not words or shutil.which(words[0]) is None:
            raise InputError(
                f"chat.judge: there is no program {words[0] if words else ''!r}; give a command that can be run"
            )
        return cls(words, seconds)

    def compare(self, prompt: Sequence[Turn], ours: str, reference: str, where: str) -> Verdict:
        """The better reply; `InputError` for a judge that takes too long, fails, or answers something else."""
        messages = [{"role": turn.role, "content": turn.content} for turn in prompt]
        exchanged = derive_seed(0, f"judge {json.dumps(messages)}") % 2 == 1
        shown = {"ours": reference, "reference": ours} if exchanged else {"ours": ours, "reference": reference}
        answer = self._ask(json.dumps({"prompt": messages, **shown}, ensure_ascii=False), where)
        return EXCHANGED[answer] if exchanged else answer

    def _ask(self, question: str, where: str) -> Verdict:
        name = f"{where}: the judge {shlex.join(self.command)!r}"
        try:
            done = subprocess.run(
                self.command, input=question.encode(), capture_output=True, timeout=self.seconds, check=False
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise InputError(
                f"{name} gave no answer in {self.seconds:g} s; let it have more by chat.judge_seconds"
            ) from None
        except OSError as error:
            raise InputError(f"{name} can't be run: {error.strerror}") from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise InputError(f"{name} failed with exit code {done.returncode}{': ' + said[-1] if said else ''}")
        answer = done.stdout.decode(errors="replace").strip()
        for verdict in EXCHANGED.values():
            if answer == verdict:
                return verdict
        raise InputError(f"{name} answered {answer[:60]!r}; accepted: ours, reference, tie")


def read_replies(path: str) -> dict[str, str]:
    """The replies of a predictions file, by the dialogues that they belong to (`dialogue_key`)."""
    replies: dict[str, str] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"chat.against: {path}: no predictions can be read there: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            replies[dialogue_key(row["messages"])] = row["prediction"]["reply"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise InputError(
                f"chat.against: {path}:{number}: not a prediction of task chat, with messages and reply"
            ) from None
    return replies


def dialogue_key(messages: Any) -> str:
    """What tells dialogues apart, in whichever file they stand."""
    return json.dumps(messages, sort_keys=True, default=str)


def win_rate(verdicts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Shares of the `verdict`s; a tie is half a win."""
    shares = {name: sum(one["verdict"] == name for one in verdicts) / len(verdicts) for name in EXCHANGED}
    return {
        "win_rate": shares["ours"] + shares["tie"] / 2,
        "won": shares["ours"], "lost": shares["reference"], "tied": shares["tie"],
    }  # fmt: skip
