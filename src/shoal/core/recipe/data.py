"""What is read, how it is cleaned, and how it becomes tokens."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, Strict

from shoal.core.recipe.fields import Fraction, Positive, PositiveFloat, Switch, section


@section
class Clean:
    """Which documents are kept, and what is mended in them; all off unless asked (null: as the preset has it)."""

    preset: Literal["off", "text", "web"] = "off"
    """`text`: repair, exact and near; `web`: these, and the rules gopher, repetition, c4 and fineweb."""
    repair: Switch = None
    """Mend mojibake, entities, control characters and line ends."""
    languages: list[str] = field(default_factory=list)
    """Keep only documents in these languages (`en`, `zh`, `ja`, …); empty: all."""
    language_confidence: Fraction = 0.65
    """How sure of its language a document must be."""
    gopher: Switch = None
    """Quality rules of Gopher: length, symbols, letters, stop words."""
    repetition: Switch = None
    """Gopher's rules against repeated lines, paragraphs and n-grams."""
    c4: Switch = None
    """Rules of C4: lines about scripts and policies, pages with curly brackets, too few sentences."""
    c4_terminal: Annotated[bool, Strict()] = False
    """`c4`: also drop every line that doesn't end in punctuation."""
    fineweb: Switch = None
    """Rules of FineWeb: lists, menus, repeated lines."""
    thresholds: dict[str, float | dict[str, float]] = field(default_factory=dict)
    """Limits of rules: `{words_least: 20}` for all languages, `{zh: {words_least: 20}}` for one."""
    mask: list[str] = field(default_factory=list)
    """Personal data to replace: `email`, `phone`, `ip`, `card`, `chinese_id`."""
    decontaminate: list[str] = field(default_factory=list)
    """Sources of evaluation texts: documents that share 13 words in a row with one are dropped."""
    exact: Switch = None
    """Drop documents whose text was there before."""
    near: Switch = None
    """Drop documents that are similar to an earlier one (MinHash)."""
    near_similarity: Fraction = 0.45
    """`near`: Jaccard similarity of shingles that makes duplicates; with a tenth of the words changed it is 0.57."""
    near_shingle: Positive = 3
    """`near`: words in a shingle."""
    near_bands: Positive = 32
    """`near`: bands of hashes; more find more."""
    near_rows: Positive = 4
    """`near`: hashes in a band; more make fewer candidates."""
    judged_characters: Positive = 1_000_000
    """A longer document is judged by so much of its beginning."""
    memory_megabytes: PositiveFloat = 250.0
    """Memory for finding duplicates, beside 0.1 to 0.4 GB a process for Python, its libraries and the text under way."""


@section
class Data:
    """Which text, and where its token shards lie."""

    sources: list[str] = field(default_factory=lambda: ["stdlib"])
    """What to read: `stdlib` (Python's own source), files, folders, `*.jsonl`, `*.parquet`, `.gz`/`.zst` of these,
    a `datasets` folder, `hub:OWNER/NAME`, or `package:NAME/FILE`, a file of an installed Python package."""
    directory: str = ""
    """Where the corpus lies; empty: `data/NAME`."""
    text_field: str = "text"
    """The field of JSONL, Parquet and `datasets` rows that holds the text."""
    held_out: Annotated[float, Strict(), Field(gt=0, lt=1)] = 0.02
    """Share that is kept for evaluation."""
    held_out_by: Literal["document", "tail"] = "document"
    """`document`: whole documents, chosen by a hash of their text; `tail`: the end of every document."""
    shard_megabytes: PositiveFloat = 8.0
    """Text in a shard file, in millions of bytes; a worker tokenizes, and an interruption loses, so much at a time."""
    partition: Literal["interleaved", "blocks"] = "interleaved"
    """Which sequences of a global batch a rank reads: every Nth, or one contiguous block."""
    documents: Literal["file", "line"] = "file"
    """What a document is in a text file: all of it, or each line."""
    on_error: Literal["stop", "skip"] = "stop"
    """A line or row that can't be used, or a text file that is not UTF-8: stop there, or leave it out and count it."""
    clean: Clean = field(default_factory=Clean)
    rows: Literal["stream", "packed", "grouped"] = "stream"
    """What a sequence is: a window of the joined text, whole documents packed together, or one document, padded, beside
    others of its length."""
    borders: Annotated[bool, Strict()] = False
    """`stream`: attention and positions stop where a document ends, as they always do in the other kinds of rows."""
    mixture: list[str] = field(default_factory=list)
    """Prepared corpora to read together instead of one, all of one tokenizer: their folders, or NAME for `data/NAME`."""
    weights: list[list[float]] = field(default_factory=list)
    """Of the `mixture`: a line a stage of the run, which says where it begins (below 1 a share of the run, else a step),
    then a weight for each corpus. Empty: by their sizes."""


@section
class Tokenizer:
    """How text becomes tokens."""

    kind: Literal["bpe", "char", "wordpiece", "unigram"] = "bpe"
    """Byte-level BPE, one token a character, BERT's WordPiece, or byte-level Unigram."""
    vocabulary: Positive = 8192
    """Tokens in a trained vocabulary, special ones included."""
    path: str = ""
    """An existing `tokenizer.json` (or a folder with one) to use instead of training one."""
    sample_bytes: Positive = 16_000_000
    """Text that a tokenizer is trained on, at most."""
    special: list[str] = field(default_factory=list)
    """Further special tokens, as `<|name|>`; what the task needs is added by itself."""
    pattern: Literal["gpt2", "llama3"] = "gpt2"
    """`bpe`, `unigram`: what is taken for a word; `llama3` cuts numbers after three digits and keeps line ends apart."""
    lowercase: Annotated[bool, Strict()] = True
    """`wordpiece`: lower case, and no accents."""
