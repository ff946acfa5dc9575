"""Building the native library: once a machine, and a reason where it can't be."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shoal.core import native
from shoal.core.machine import cores, cpp_compiler
from shoal.core.native.attention import attention

pytestmark = pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")


@pytest.fixture
def unloaded() -> Iterator[None]:
    native.load.cache_clear()
    yield
    native.load.cache_clear()


def test_without_a_compiler_there_is_a_reason(monkeypatch: pytest.MonkeyPatch, unloaded: None) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    library, reason = native.load()
    assert library is None
    assert "no C++ compiler" in reason
    assert attention(*torch.randn(3, 1, 2, 20, 16)) is None


def test_a_compiler_that_fails_gives_its_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unloaded: None) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho out of paper >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    library, reason = native.load()
    assert library is None
    assert "out of paper" in reason


def test_a_cache_folder_that_cannot_be_made_gives_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unloaded: None
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    library, reason = native.load()
    assert library is None
    assert "no compiled library" in reason


def test_ranks_that_start_together_build_once_and_on_all_cores(tmp_path: Path) -> None:
    """The compiler is the machine's own, but gets nothing to do but a function a file; it notes where it may run."""
    compiler = tmp_path / "c++"
    compiler.write_text(
        f"""#!{sys.executable}
import os, subprocess, sys
words = sys.argv[1:]
with open({str(tmp_path / "calls")!r}, "a") as calls:
    print("begin" if "-dM" in words else "compile" if "-c" in words else "link", len(os.sched_getaffinity(0)), file=calls)
if "-c" in words:
    while open({str(tmp_path / "calls")!r}).read().count("begin") < 2:  # both ranks have looked for the library
        pass
    source = words[words.index("-c") + 1]
    words[words.index("-c") + 1] = source = words[words.index("-o") + 1] + ".cpp"
    open(source, "w").write("static int nothing;")
sys.exit(subprocess.run([{cpp_compiler()!r}, *words]).returncode)
"""
    )
    compiler.chmod(0o755)
    narrow = "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
    code = f"import os; from shoal.core import native; {narrow}; library, why = native.load(); assert library, why"
    environment = os.environ | {"CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    ranks = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [rank.wait() for rank in ranks] == [0, 0]
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    assert [kind for kind, _ in calls].count("link") == 1
    assert max(int(among) for _, among in calls) == cores()
