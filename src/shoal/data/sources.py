"""Where text comes from: a specification in a recipe becomes a `Source` that iterates documents in a fixed order.

A source is listed when it is opened and read when it is iterated, as often as one likes; the same files give the same
documents in the same order on every machine. Its fingerprint is made of names, sizes and modification times, not of
content: checking that a prepared corpus is still the right one takes milliseconds whatever its size, and in return a
file that is merely touched counts as changed.

Adding a kind of source is one `_open_*` function and one line in `open_source`.
"""

import difflib
import hashlib
import importlib.util
import os
import platform
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from shoal.core.errors import InputError
from shoal.data.readers import (
    ROWS,
    Document,
    Faults,
    NotUtf8Error,
    Reading,
    is_compressed,
    is_known,
    read_file,
    row_documents,
    row_text,
)

# Not text to learn from: third-party packages, and files that are broken or oddly encoded on purpose.
STDLIB_WITHOUT = ("site-packages", "dist-packages", "lib2to3/tests/data")

OnError = Literal["stop", "skip"] | None
ADVICE = "; mend it, or leave out what can't be used: --on-error skip"


@dataclass(frozen=True)
class Source:
    """Documents in a fixed order, read while iterating.

    `bytes` is the size on disk where that is about the size of the text (None: compressed, or not known before
    reading). `skipped` fills while iterating: files of the standard library that are not UTF-8, on purpose; `faults`: what
    else was left out.
    """

    name: str
    fingerprint: str
    bytes: int | None
    read: Callable[[], Iterator[Document]]
    skipped: set[str] = field(default_factory=set)
    faults: Faults = field(default_factory=Faults)

    def __iter__(self) -> Iterator[Document]:
        self.faults.forget()
        empty = True
        for document in self.read():
            if document.text:
                empty = False
            yield document
        if empty:
            left_out = (
                f" that can be used: {self.faults.count} left out, first {self.faults.first[0]}" if self.faults.count else ""
            )
            raise InputError(f"{self.name}: holds no text{left_out}")


def open_sources(specs: Sequence[str], text_field: str, lines: bool = False, on_error: OnError = None) -> list[Source]:
    """One source a specification; raises `InputError` for what is not there.

    `lines`: each line of a text file is a document; `on_error` "skip": what can't be used is left out, and counted in
    `Source.faults`.
    """
    if not specs:
        raise InputError("data.sources is empty; name a file, a folder, hub:OWNER/NAME or stdlib")
    return [open_source(spec, text_field, lines, on_error) for spec in specs]


def open_source(spec: str, text_field: str, lines: bool = False, on_error: OnError = None) -> Source:
    """`stdlib`, `hub:OWNER/NAME[:CONFIG]`, `package:NAME/FILE`, a `datasets` folder, a folder or a file."""
    reading = Reading(text_field, lines, Faults(on_error == "skip", ADVICE if on_error == "stop" else ""))
    return replace(_open_source(spec, reading), faults=reading.faults)


def _open_source(spec: str, reading: Reading) -> Source:
    if spec == "stdlib":
        return _open_stdlib()
    if spec.startswith("hub:"):
        return _open_hub(spec, reading)
    path = _package_path(spec) if spec.startswith("package:") else Path(spec).expanduser()
    if not path.exists():
        raise InputError(f"{spec}: no such file or folder{_nearest(path)}")
    if (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists():
        return _open_dataset(spec, path, reading)
    if path.is_dir():
        return _open_folder(spec, path, reading)
    return _file_source(spec, path.parent, [path], lambda: read_file(path, spec, reading))


def _package_path(spec: str) -> Path:
    """Where a file of an installed package lies; the package is not run."""
    name, _, file = spec.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise InputError(f"{spec}: no package '{name}' is installed; install it: pip install {name or 'NAME'}")
    return Path(found.submodule_search_locations[0]) / file


def _nearest(path: Path) -> str:
    siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, [*siblings, "stdlib"], 1)
    if not near:
        return "" if path.parent.is_dir() else f" (and no folder {path.parent})"
    return f"; did you mean {near[0] if near[0] == 'stdlib' else path.parent / near[0]}?"


def _file_source(name: str, root: Path, paths: Sequence[Path], read: Callable[[], Iterator[Document]]) -> Source:
    stats = [(path.relative_to(root).as_posix(), path.stat()) for path in paths]
    fingerprint = _hashed(f"{relative}\t{stat.st_size}\t{stat.st_mtime_ns}" for relative, stat in stats)
    size = None if any(map(is_compressed, paths)) else sum(stat.st_size for _, stat in stats)
    return Source(name, fingerprint, size, read)


def _hashed(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _listing(root: Path, skip: Callable[[str], bool]) -> list[str]:
    """Names of all files below a folder, sorted; folders and files that `skip` names are not entered."""
    found = []
    for folder, folders, files in os.walk(root):
        above = Path(folder).relative_to(root).as_posix().removeprefix(".")
        prefix = f"{above}/" if above else ""
        folders[:] = [name for name in folders if not skip(prefix + name)]
        found += [prefix + name for name in files if not skip(prefix + name)]
    return sorted(found)


def _is_hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".")


def _open_folder(spec: str, root: Path, reading: Reading) -> Source:
    visible = _listing(root, _is_hidden)
    known = [name for name in visible if is_known(Path(name))]
    if not known:
        found = sorted({Path(name).suffix or Path(name).name for name in visible})
        raise InputError(
            f"{spec}: no text files in it (found: {', '.join(found[:8]) or 'nothing'}); name the files themselves"
        )

    def read() -> Iterator[Document]:
        for name in known:
            yield from read_file(root / name, (Path(spec) / name).as_posix(), reading)

    return _file_source(spec, root, [root / name for name in known], read)


def _open_stdlib() -> Source:
    root = Path(sysconfig.get_path("stdlib"))
    names = [name for name in _listing(root, STDLIB_WITHOUT.__contains__) if name.endswith(".py")]
    skipped: set[str] = set()

    def read() -> Iterator[Document]:
        for name in names:
            try:
                yield from read_file(root / name, name, Reading())
            except NotUtf8Error:
                skipped.add(name)

    # Modification times are those of an installation; the version says what the text is.
    sizes = [(root / name).stat().st_size for name in names]
    listing = (f"{name}\t{size}" for name, size in zip(names, sizes, strict=True))
    return Source("stdlib", _hashed([platform.python_version(), *listing]), sum(sizes), read, skipped)


def _open_dataset(spec: str, root: Path, reading: Reading) -> Source:
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(root)
    except Exception as error:  # the library raises many kinds for a damaged folder
        raise InputError(f"{spec}: not a whole `datasets` folder ({error})") from None
    if isinstance(dataset, DatasetDict):
        if "train" not in dataset:
            raise InputError(f"{spec}: has no split 'train'; name one of the folders {', '.join(dataset)} in it")
        dataset = dataset["train"]
    paths = [root / name for name in _listing(root, _is_hidden)]
    return _file_source(spec, root, paths, lambda: _read_rows(dataset, spec, reading))


def _open_hub(spec: str, reading: Reading) -> Source:
    from datasets import load_dataset

    name, _, config = spec.removeprefix("hub:").partition(":")
    local = Path(name).expanduser()
    try:
        dataset = load_dataset(name, config or None, split="train", streaming=True)
    except Exception as error:  # network, missing names, wrong configurations: the library's own message says which
        raise InputError(f"{spec}: can't be opened: {error}") from None
    paths = [local / name for name in _listing(local, _is_hidden)] if local.is_dir() else []
    source = _file_source(spec, local, paths, lambda: _read_rows(dataset, spec, reading))
    return replace(source, bytes=None)


def _read_rows(dataset: Any, spec: str, reading: Reading) -> Iterator[Document]:
    columns, text_field = dataset.column_names, reading.text_field
    if columns and text_field not in columns:
        row_text(dict.fromkeys(columns), text_field, spec)
    rows = dataset.select_columns([text_field]) if columns else dataset
    number = 0
    for batch in rows.iter(batch_size=ROWS):
        for text in batch.get(text_field) or [None]:
            number += 1
            row = {text_field: text} if text_field in batch else batch
            yield from row_documents(row, f"{spec}: row {number}", reading)
