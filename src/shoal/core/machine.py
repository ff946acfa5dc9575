"""What machine this is, and since when this process runs on it."""

import ctypes
import hashlib
import os
import platform
import resource
import shutil
import sys
import sysconfig
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

STARTED = "SHOAL_STARTED"
"""Environment variable with the Unix time at which the user's command began; ranks inherit it."""

CGROUP = Path("/sys/fs/cgroup")


def command_started() -> float:
    """Unix time at which the command that the user typed began (not the rank that it started)."""
    if STARTED not in os.environ:
        os.environ[STARTED] = repr(_process_started())
    return float(os.environ[STARTED])


def _process_started() -> float:
    try:
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - (uptime - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return time.time()


def peak_memory_bytes() -> int:
    """Most memory that this process has had resident."""
    scale = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def total_memory_bytes() -> int:
    """Memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory_bytes() -> int:
    """Memory that new processes may take: what is free here, or what is left of the container's share (cgroup v2).

    Files that were read lie in memory until it is wanted for something else, so they count as free in both.
    """
    free = total_memory_bytes()
    with suppress(OSError, ValueError, StopIteration):
        free = _number_after("MemAvailable:", Path("/proc/meminfo")) * 1024
    with suppress(OSError, ValueError, StopIteration):
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        cached = _number_after("inactive_file", CGROUP / "memory.stat")
        free = min(free, max(0, limit - used + cached))
    return free


def _number_after(name: str, file: Path) -> int:
    return int(next(words[1] for words in map(str.split, file.read_text().splitlines()) if words[:1] == [name]))


def cpu_name() -> str:
    """The processor's name, as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_given = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def use_cores_given() -> None:
    """Let the thread that calls this, and processes that it starts, use every core that this process began with.

    A rank of several keeps to its share of them; for what it does once, while the others wait for it, it may have all.
    """
    if _given:
        os.sched_setaffinity(0, _given)


def keep_freed_memory() -> None:
    """Let glibc keep the memory that this process frees in blocks of up to 32 MiB, as each training step wants it again.

    By default it gives what lies free at its end back to the system, and the next step fetches it anew, page by page: 3% of
    a step. Without glibc, and where the environment sets its thresholds or tunables itself, nothing is changed.
    """
    if any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")):
        return
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # as malloc.h numbers them
        libc.mallopt(mmap_threshold, 32 << 20)  # the most that it takes: what is larger comes and goes as before
        libc.mallopt(trim_threshold, -1)


def cache_folder() -> Path:
    """Where Shoal keeps what is made once a machine: `$XDG_CACHE_HOME/shoal`, else `~/.cache/shoal`."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "shoal"


def python_headers() -> bool:
    """Whether Python.h is there, which torch.compile's kernels include."""
    return (Path(sysconfig.get_paths()["include"]) / "Python.h").exists()


def cpp_compiler() -> str | None:
    """The machine's C++ compiler: `$CXX`, g++ or clang++."""
    named = os.environ.get("CXX")
    return shutil.which(named) if named else shutil.which("g++") or shutil.which("clang++")


@cache
def code_fingerprint() -> str:
    """Hash of this package's own source: equal versions may still differ where people change code."""
    package = Path(__file__).parents[1]
    sources = sorted(path for path in package.rglob("*") if path.suffix in (".py", ".cpp", ".h"))
    digest = hashlib.sha256()
    for path in sources:
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
