"""What this machine is, as far as any machine can be known in a test."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shoal.core import machine


def test_the_command_began_before_now_and_its_children_know_when(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(machine.STARTED, "0")  # so that it is put back afterwards
    monkeypatch.delenv(machine.STARTED)
    began = machine.command_started()
    assert 0 < began <= time.time()
    assert float(os.environ[machine.STARTED]) == began
    monkeypatch.setenv(machine.STARTED, "12.5")
    assert machine.command_started() == 12.5


def test_memory_is_counted_in_bytes() -> None:
    assert 10_000_000 < machine.peak_memory_bytes() < machine.total_memory_bytes()


def test_the_processor_has_a_name_and_cores() -> None:
    assert machine.cpu_name().strip()
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)


def test_the_compiler_is_the_one_that_the_environment_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert machine.cpp_compiler() == str(compiler)
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    assert machine.cpp_compiler() is None
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.cpp_compiler() is None


def test_what_is_free_is_some_of_what_is_there() -> None:
    assert 0 < machine.available_memory_bytes() <= machine.total_memory_bytes()


def test_of_a_container_s_share_files_that_were_read_are_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    for name, content in (("max", "9000000"), ("current", "7000000"), ("stat", "anon 2000000\ninactive_file 4000000\n")):
        (tmp_path / f"memory.{name}").write_text(content)
    assert machine.available_memory_bytes() == 6_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.available_memory_bytes() > 9_000_000


FAULTS = """
import ctypes, resource, sys
from shoal.core.machine import keep_freed_memory
libc = ctypes.CDLL(None)
libc.prctl(41, 1, 0, 0, 0)  # no pages larger than others
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(ctypes.c_size_t(20 << 20)) for _ in range(4)]
    for block in blocks:
        ctypes.memset(block, 1, 20 << 20)
    for block in blocks:
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
if sys.argv[1:]:
    keep_freed_memory()
step(), step()
print(step())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_memory_that_a_step_frees_is_there_for_the_next_one() -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}

    def faults(*arguments: str, **variables: str) -> int:
        command = [sys.executable, "-c", FAULTS, *arguments]
        return int(subprocess.run(command, capture_output=True, text=True, check=True, env={**clean, **variables}).stdout)

    assert faults("kept") < 100
    most = (80 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert faults() > most / 2
    assert faults("kept", MALLOC_TRIM_THRESHOLD_="131072") > most / 2  # what the environment says holds
