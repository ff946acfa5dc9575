"""Code of our own in C++, compiled on the machine that runs it.

A wheel would have to choose instructions that every x86-64 machine has; with `-march=native` attention takes 51 ms instead
of 188. The price is a compiler and three seconds, once a machine: the library is kept in
`$XDG_CACHE_HOME/shoal/native` (else `~/.cache`) under a hash of all that shapes it. Without a compiler there is no
library, and callers use PyTorch's own operations.
"""

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from shoal.core.machine import cache_folder, cpp_compiler

SOURCE = Path(__file__).with_name("attention.cpp")
TARGET = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
FLAGS = ("-std=c++17", "-O3", TARGET, "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")


@cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """The compiled library; or None, and the reason."""
    compiler = cpp_compiler()
    if compiler is None:
        return None, "no C++ compiler: install g++ or clang++, or name one in CXX"
    try:
        path = library_path(compiler)
        if not path.exists():
            build(compiler, path)
        return ctypes.CDLL(str(path)), ""
    except subprocess.SubprocessError as error:
        return None, f"{compiler} failed: {getattr(error, 'stderr', None) or error}"
    except OSError as error:
        return None, f"no compiled library: {error}"


def library_path(compiler: str) -> Path:
    """Where the library for this source, these flags, this compiler and this processor is kept."""
    # The predefined macros tell the compiler's version and each instruction set that "native" stands for here.
    macros = run(compiler, *FLAGS, "-dM", "-E", "-x", "c++", os.devnull)
    key = hashlib.sha256("\0".join((compiler, *FLAGS, macros, SOURCE.read_text())).encode())
    return cache_folder() / "native" / f"{key.hexdigest()[:32]}.so"


def build(compiler: str, path: Path) -> None:
    """Compile to a name of our own, then rename: another rank may be doing the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        built = Path(directory, path.name)
        run(compiler, *FLAGS, str(SOURCE), "-o", str(built))
        built.replace(path)


def run(*command: str) -> str:
    """The command's output. `SubprocessError` when it fails or takes more than two minutes."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
