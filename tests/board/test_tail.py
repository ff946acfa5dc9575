"""Every whole line of a growing file is told once, however it was written, and nothing is read twice."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from shoal.board.tail import FINGERPRINT, Tail

lines = st.lists(st.binary(max_size=20).map(lambda text: text.replace(b"\n", b"")), max_size=30)


def told(tail: Tail) -> list[bytes]:
    """All lines that are whole now."""
    found = []
    while True:
        news = tail.look()
        found += [text for _, text in news.lines]
        if not news.pending:
            return found


@given(lines, st.data())
def test_any_split_of_the_writing_gives_the_same_lines(tmp_path_factory, written: list[bytes], data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("tail") / "file"
    whole = b"".join(line + b"\n" for line in written)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    tail, found = Tail(path, longest=data.draw(st.integers(21, 60))), []
    with path.open("wb", buffering=0) as file:
        for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            file.write(whole[start:end])
            found += told(tail)
    assert found == written
    assert tail.offset == len(whole)


@given(lines)
def test_offsets_are_where_the_lines_begin(tmp_path_factory, written: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("tail") / "file"
    whole = b"".join(line + b"\n" for line in written)
    path.write_bytes(whole)
    for offset, text in Tail(path).look().lines:
        assert whole[offset : offset + len(text) + 1] == text + b"\n"


def test_a_half_written_last_line_is_left_until_its_end_has_come(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one\ntw")
    tail = Tail(path)
    assert told(tail) == [b"one"]
    assert told(tail) == []
    path.write_bytes(b"one\ntwo\n")
    assert told(tail) == [b"two"]


def test_a_file_that_has_not_changed_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one\n" * 1000 + b"half")
    tail = Tail(path)
    told(tail)
    before = tail.bytes_read
    assert told(tail) == []
    assert tail.bytes_read == before


def test_a_new_line_costs_itself_and_a_fingerprint_however_long_the_file_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789\n" * 100_000)
    tail = Tail(path, longest=5000)
    assert len(told(tail)) == 100_000
    before = tail.bytes_read
    with path.open("ab") as file:
        file.write(b"new\n")
    assert told(tail) == [b"new"]
    assert tail.bytes_read - before == len(b"new\n") + FINGERPRINT


def test_a_shorter_file_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one\ntwo\n")
    tail = Tail(path)
    told(tail)
    path.write_bytes(b"one\n")
    news = tail.look()
    assert news.restarted
    assert [text for _, text in news.lines] == [b"one"]


def test_another_file_of_the_same_name_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one\n")
    tail = Tail(path)
    told(tail)
    (tmp_path / "other").write_bytes(b"one\ntwo\n")
    (tmp_path / "other").rename(path)
    news = tail.look()
    assert news.restarted
    assert [text for _, text in news.lines] == [b"one", b"two"]


def test_a_file_that_was_rewritten_in_place_and_has_grown_past_the_old_end_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one\ntwo\n")
    tail = Tail(path)
    told(tail)
    with path.open("r+b") as file:
        file.write(b"ONE\nTWO\nTHREE\n")
    news = tail.look()
    assert news.restarted
    assert [text for _, text in news.lines] == [b"ONE", b"TWO", b"THREE"]


def test_a_file_that_goes_away_is_forgotten_and_one_that_comes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    tail = Tail(path)
    assert tail.look().lines == []
    path.write_bytes(b"one\n")
    assert told(tail) == [b"one"]
    path.unlink()
    assert tail.look().restarted
    path.write_bytes(b"two\n")
    assert told(tail) == [b"two"]


def test_a_line_that_is_too_long_is_told_as_empty_and_the_next_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"short\n" + b"x" * 95 + b"\nnext\n")
    tail = Tail(path, longest=10)
    assert told(tail) == [b"short", b"", b"next"]
    assert tail.offset == path.stat().st_size
