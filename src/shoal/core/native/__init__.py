"""Code of our own in C++, compiled on the machine that runs it.

A wheel would have to choose instructions that every x86-64 machine has; with `-march=native` attention takes 51 ms instead
of 188. The price is a compiler and ten seconds, once a machine: the library is kept in
`$XDG_CACHE_HOME/shoal/native` (else `~/.cache`) under a hash of all that shapes it. Without a compiler there is no
library, and callers use PyTorch's own operations.
"""

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from shoal.core.machine import cache_folder, cpp_compiler, use_cores_given

SOURCES = sorted(Path(__file__).parent.glob("*.cpp"))
HEADERS = sorted(Path(__file__).parent.glob("*.h"))
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
            path.parent.mkdir(parents=True, exist_ok=True)
            with _one_at_a_time(path.with_suffix(".lock")):  # one rank of a machine builds, on all cores; the others wait
                if not path.exists():
                    build(compiler, path)
        return ctypes.CDLL(str(path)), ""
    except subprocess.SubprocessError as error:
        return None, f"{compiler} failed: {getattr(error, 'stderr', None) or error}"
    except OSError as error:
        return None, f"no compiled library: {error}"


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock; nothing where the file system has none: then all build, each under a name of its own."""
    lock = FileLock(path)
    with suppress(OSError, NotImplementedError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def library_path(compiler: str) -> Path:
    """Where the library for this source, these flags, this compiler and this processor is kept."""
    # The predefined macros tell the compiler's version and each instruction set that "native" stands for here.
    macros = run(compiler, *FLAGS, "-dM", "-E", "-x", "c++", os.devnull)
    texts = [path.read_text() for path in (*HEADERS, *SOURCES)]
    key = hashlib.sha256("\0".join((compiler, *FLAGS, macros, *texts)).encode())
    return cache_folder() / "native" / f"{key.hexdigest()[:32]}.so"


def build(compiler: str, path: Path) -> None:
    """Compile to a name of our own, then rename: what is interrupted leaves nothing that looks whole."""
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        built = Path(directory, path.name)
        objects = [Path(directory, f"{source.stem}.o") for source in SOURCES]
        with ThreadPoolExecutor(len(SOURCES), initializer=use_cores_given) as pool:  # two cores halve the time
            jobs = [
                pool.submit(run, compiler, *FLAGS, "-c", str(source), "-o", str(made))
                for source, made in zip(SOURCES, objects, strict=True)
            ]
        for job in jobs:
            job.result()
        run(compiler, *FLAGS, *map(str, objects), "-o", str(built))
        built.replace(path)


def call(name: str, *arguments: Any) -> None:
    """Call a function of the library, with as many of torch's threads as there are; `MemoryError` when it had too little."""
    library, reason = load()
    if library is None:
        raise RuntimeError(reason)
    if library[name](*arguments, ctypes.c_int64(torch.get_num_threads())):
        raise MemoryError(f"{name}: no memory for its blocks")


@cache
def brief() -> ctypes.PyDLL | None:
    """The library for calls of microseconds: they keep Python's lock, as who gives it up waits until another thread does."""
    library = load()[0]
    return None if library is None else ctypes.PyDLL(library._name)


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    """Where a tensor lies; it must outlive the use. Null for none."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def available() -> bool:
    """Whether the library is there; compiles it at the first call. A compiled graph takes the answer for fixed."""
    return load()[0] is not None


def run(*command: str) -> str:
    """The command's output. `SubprocessError` when it fails or takes more than two minutes."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
