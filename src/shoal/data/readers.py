"""One file, one reader: from bytes on disk to documents, a piece at a time.

A reader holds at most one piece (`PIECE` bytes) of a text file, one line of JSONL, or one batch of a table's rows, so
memory does not grow with the corpus. A text file is one document, or each line is one; a large one comes in pieces cut at
line ends. A tokenizer may pair characters across such a cut differently than in one go, once in 1 MB; decoding is not
affected.

Adding a format is one reader here, one line in `READERS`, one row in the tests.
"""

import codecs
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from shoal.core.errors import InputError

PIECE = 1_000_000
ROWS = 1000
TOLD = 5
"""Faults of a source whose places are kept."""


@dataclass(frozen=True)
class Document:
    """A text, or a piece of one when `continues` says that more of it follows."""

    name: str
    text: str
    continues: bool = False


class NotUtf8Error(InputError):
    """A file is not UTF-8 text."""


@dataclass
class Faults:
    """What can't be used in a source: the end of it, or, if `skip`, left out, counted, and the first few kept to be told.

    `advice` says what else one could do than mend it.
    """

    skip: bool = False
    advice: str = ""
    count: int = 0
    first: list[str] = field(default_factory=list)

    def meet(self, error: InputError) -> None:
        """A line, a row, or a text file can't be used."""
        if not self.skip:
            raise type(error)(f"{error}{self.advice}") from None
        self.count += 1
        if len(self.first) < TOLD:
            self.first.append(str(error).partition(";")[0])

    def forget(self) -> None:
        """The source is read again, from its beginning."""
        self.recall(0, [])

    def recall(self, count: int, first: list[str]) -> None:
        """What was met when the source was read before, and is not read again."""
        self.count, self.first[:] = count, first


@dataclass(frozen=True)
class Reading:
    """How files are read: the field with the text, whether a line of a text file is a document, what becomes of faults."""

    text_field: str = "text"
    lines: bool = False
    faults: Faults = field(default_factory=Faults)


def read_file(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    """The documents of one file, by its name's ending; raises `InputError` that says where it is wrong."""
    return READERS.get(_ending(path), _read_lines if reading.lines else _read_text)(path, name, reading)


def is_compressed(path: Path) -> bool:
    """Whether the size on disk says nothing about the size of the text."""
    return path.suffix in COMPRESSIONS or _ending(path) == ".parquet"


def is_known(path: Path) -> bool:
    """Whether a folder's file is read at all: by its ending."""
    return _ending(path) in READERS or _ending(path) in TEXT_ENDINGS


def row_text(row: dict[str, Any], field: str, where: str) -> str:
    """The text of one row of a table."""
    if field not in row:
        raise InputError(f"{where}: no field '{field}'; the fields are: {', '.join(row)}. Name one with --data.text_field")
    text = row[field]
    if not isinstance(text, str):
        raise InputError(f"{where}: the field '{field}' is {type(text).__name__}, not text")
    return text


def row_documents(row: dict[str, Any], where: str, reading: Reading) -> Iterator[Document]:
    """The document of one row of a table, or none where it has no text and that is to be left out."""
    try:
        yield Document(where, row_text(row, reading.text_field, where))
    except InputError as error:
        reading.faults.meet(error)


def _ending(path: Path) -> str:
    return Path(path.stem).suffix.lower() if path.suffix in COMPRESSIONS else path.suffix.lower()


@contextmanager
def opened_text(path: Path, name: str) -> Iterator[TextIO]:
    """A UTF-8 text file, perhaps compressed, with its line ends as they are; `InputError` where it is something else."""
    with _opened(path, name) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        try:
            yield text
        except UnicodeDecodeError as error:
            raise NotUtf8Error(f"{name}: not UTF-8 text ({error.reason}); convert it first") from None


@contextmanager
def _opened(path: Path, name: str) -> Iterator[BinaryIO]:
    try:
        with _open_compressed(path) if path.suffix in COMPRESSIONS else path.open("rb") as file:
            yield file
    except OSError as error:
        raise InputError(f"{name}: can't be read: {error.strerror or error}") from None


def _open_compressed(path: Path) -> BinaryIO:
    # Of the libraries at hand, Arrow is the one that takes a cut file for an error in both formats.
    import pyarrow as arrow

    return cast(BinaryIO, io.BufferedReader(arrow.input_stream(str(path), compression=COMPRESSIONS[path.suffix]), 1 << 20))


def _read_text(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    if reading.faults.skip:  # a file is left out as a whole, so its end is looked at before its beginning is given
        try:
            with _opened(path, name) as file:
                for _ in _decoded(file, name):
                    pass
        except NotUtf8Error as error:
            reading.faults.meet(error)
            return
    with _opened(path, name) as file:
        waiting = ""
        for text in _decoded(file, name):
            if waiting:
                cut = waiting.rfind("\n") + 1 or len(waiting)
                yield Document(name, waiting[:cut], continues=True)
                text = waiting[cut:] + text
            waiting = text
        yield Document(name, waiting)


def _decoded(file: BinaryIO, name: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    while True:
        block = file.read(PIECE)
        offset += len(block)
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            where = offset - len(error.object) + error.start
            raise NotUtf8Error(f"{name}: not UTF-8 text at byte {where} ({error.reason}); convert it first") from None
        if text:
            yield text.removeprefix("\ufeff") if offset == len(block) else text
        if not block:
            return


def _read_lines(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    for where, line in numbered_lines(path, name, reading.faults):
        yield Document(where, line.rstrip("\r\n"))


def _read_jsonl(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    for where, line in numbered_lines(path, name, reading.faults):
        try:
            yield Document(where, _line_text(line, reading.text_field, where))
        except InputError as error:
            reading.faults.meet(error)


def numbered_lines(path: Path, name: str, faults: Faults, blank: bool = False) -> Iterator[tuple[str, str]]:
    """(where, line) of every line that is not blank, or, if `blank`, of those too."""
    for number, (where, line) in enumerate(byte_lines(path, name, blank)):
        try:
            text = line.decode("utf-8-sig" if number == 0 else "utf-8")
        except UnicodeDecodeError as error:
            faults.meet(NotUtf8Error(f"{where}: not UTF-8 text at byte {error.start} of the line"))
            continue
        yield where, text


def byte_lines(path: Path, name: str, blank: bool = False) -> Iterator[tuple[str, bytes]]:
    """(where, line) of every line that is not blank, or of all, as it is in the file."""
    with _opened(path, name) as file:
        for number, line in enumerate(cast(Iterable[bytes], file), 1):
            if blank or not line.isspace():
                yield f"{name}:{number}", line


def _line_text(line: str, text_field: str, where: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # JSON that is none, or a number of thousands of digits
        raise InputError(f"{where}: not valid JSON ({error}); JSONL has one JSON object on every line") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: a line must be a JSON object with a field '{text_field}'")
    text = row_text(row, text_field, where)
    if not is_encodable(text):
        raise InputError(f"{where}: holds half a surrogate pair (\\ud800 to \\udfff), which no text has")
    return text


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can write it: JSON can spell what it can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    import pyarrow as arrow
    from pyarrow import parquet

    text_field = reading.text_field
    try:
        with parquet.ParquetFile(path) as table:
            columns = table.schema_arrow.names
            if text_field not in columns:
                row_text(dict.fromkeys(columns), text_field, name)
            number = 0
            for batch in table.iter_batches(ROWS, columns=[text_field]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    yield from row_documents({text_field: text}, f"{name}: row {number}", reading)
    except (arrow.ArrowException, OSError) as error:
        raise InputError(f"{name}: not a whole Parquet file ({error})") from None


Reader = Callable[[Path, str, Reading], Iterator[Document]]

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
READERS: dict[str, Reader] = {".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".parquet": _read_parquet}
TEXT_ENDINGS = {
    ".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml", ".csv", ".tsv", ".py", ".pyi", ".ipynb", ".c", ".h",
    ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".kt", ".scala", ".js", ".ts", ".jsx", ".tsx", ".css", ".sh",
    ".bash", ".rb", ".php", ".pl", ".lua", ".r", ".jl", ".swift", ".sql", ".yaml", ".yml", ".toml", ".json", ".ini",
    ".cfg", ".org", ".adoc",
}  # fmt: skip
