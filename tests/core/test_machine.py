"""What this machine is, as far as any machine can be known in a test."""

import os
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
