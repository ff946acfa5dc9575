"""The command line in this process, a small model to work on, and one thread."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from shoal.cli import run
from shoal.data.tokenizer import read_tokenizer
from tests.models.shapes import GPT2
from tests.serve.languages import write_language_model
from tests.threads import one_thread  # noqa: F401 (a fixture)


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code, and what it printed where."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The message, which must be one line, with nothing on stdout and no traceback."""
        assert self.out == ""
        assert self.err.startswith("shoal: error: ")
        assert self.err.count("\n") == 1
        assert "Traceback" not in self.err
        return self.err.removeprefix("shoal: error: ").strip()


Shoal = Callable[..., Outcome]


@pytest.fixture
def shoal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shoal:
    """Run `shoal WORDS` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def command(*words: object) -> Outcome:
        capsys.readouterr()
        code = run([str(word) for word in words])
        return Outcome(code, *capsys.readouterr())

    return command


@pytest.fixture(scope="session")
def model(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with the small corpus's characters."""
    folder = tmp_path_factory.mktemp("model") / "model"
    tokenizer = read_tokenizer(corpus)
    write_language_model(folder, tokenizer, replace(GPT2, vocabulary=tokenizer.vocabulary))
    return folder
