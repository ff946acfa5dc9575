"""Packed rows: every token once, documents apart, few positions wasted, and the plan a pure function."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import DOCUMENT_LENGTHS, END, documents_of, stream_of

from shoal.core.errors import CorpusError, RecipeError
from shoal.data.batches import evaluation_rows
from shoal.data.grouping import GroupedRows
from shoal.data.packing import PackedRows, best_fit_decreasing
from shoal.data.pieces import CutDocuments, holds_document, longest_document
from shoal.data.rows import Rows
from shoal.data.sequences import Framing, Sequences
from shoal.data.shards import TokenStream

SHIFTED, WHOLE = Framing("shifted"), Framing("whole", begin=97, end=98)
KINDS = {"packed": PackedRows, "grouped": GroupedRows}


def pieces_of(sequences: Sequences) -> Iterator[tuple[list[int], list[int]]]:
    """(tokens, following) of each document's part in each row."""
    assert sequences.documents is not None
    for tokens, following, documents in zip(sequences.tokens, sequences.following, sequences.documents, strict=True):
        real = tokens >= 0
        assert np.array_equal(real, documents >= 0), "padding is no document"
        assert np.array_equal(real, np.sort(real)[::-1]), "padding stands at the end"
        for number in np.unique(documents[real]):
            here = documents == number
            assert np.ptp(np.flatnonzero(here)) == here.sum() - 1, "a document stands in one place"
            yield tokens[here].tolist(), following[here].tolist()


def read_all(rows: Rows) -> Sequences:
    samples = np.arange(rows.samples, dtype=np.int64)
    return rows.read(samples, np.zeros(len(samples), dtype=np.uint64))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(lengths=DOCUMENT_LENGTHS, context=st.integers(3, 40), begin=st.sampled_from([None, 97]))
def test_shifted_every_token_is_a_target_once_and_follows_its_own_document(
    kind: str, lengths: list[int], context: int, begin: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stream = stream_of(tmp_path_factory.mktemp("stream"), lengths)
    rows = KINDS[kind](CutDocuments.of(stream, END, context, Framing("shifted", begin)))
    expected = sorted(documents_of(lengths))
    told: dict[int, list[tuple[list[int], list[int]]]] = {}
    for tokens, following in pieces_of(read_all(rows)):
        assert len(tokens) <= context
        assert tokens[1:] == following[:-1]
        told.setdefault(following[0] // 1000 if following[0] != END else tokens[0] // 1000, []).append((tokens, following))
    found = []
    for pieces in told.values():
        pieces.sort(key=lambda piece: piece[1][0] if piece[1][0] != END else 10**9)
        found.append([token for _, following in pieces for token in following])
        assert pieces[0][0][0] == (END if begin is None else begin)
        assert all(later[0][0] == earlier[1][-1] for earlier, later in pairwise(pieces))
    assert sorted(found) == [[*document, END] for document in expected if document]
    assert rows.tokens == rows.targets == sum(length + 1 for length in lengths if length)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(lengths=DOCUMENT_LENGTHS, context=st.integers(6, 40), spare=st.integers(0, 3))
def test_whole_every_token_is_in_one_piece_between_begin_and_end(
    kind: str, lengths: list[int], context: int, spare: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stream = stream_of(tmp_path_factory.mktemp("stream"), lengths)
    rows = KINDS[kind](CutDocuments.of(stream, END, context, Framing("whole", 97, 98, spare)))
    read = read_all(rows)
    assert (read.following == -1).all()
    texts: list[int] = []
    for tokens, _ in pieces_of(read):
        assert (tokens[0], tokens[-1]) == (97, 98)
        assert len(tokens) <= context - spare
        assert len({token // 1000 for token in tokens[1:-1]}) == 1
        assert tokens[1:-1] == list(range(tokens[1], tokens[-2] + 1))
        texts += tokens[1:-1]
    assert sorted(texts) == sorted(token for document in documents_of(lengths) for token in document)
    assert read.documents is not None
    held = (read.tokens >= 0).sum(1) + spare * (read.documents.max(1) + 1)
    assert held.max() <= context, "there is room for what the task adds to each piece"
    assert rows.tokens == (read.tokens >= 0).sum()
    assert rows.targets == len(texts)


def naive_best_fit_decreasing(sizes: list[int], capacity: int) -> list[int]:
    """Free positions of each row, one piece after the other."""
    free: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [number for number, room in enumerate(free) if room >= size]
        if fitting:
            free[min(fitting, key=lambda number: free[number])] -= size
        else:
            free.append(capacity - size)
    return sorted(free)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), capacity=st.integers(1, 40))
def test_packing_is_best_fit_decreasing(data: st.DataObject, capacity: int) -> None:
    sizes = data.draw(st.lists(st.integers(1, capacity), min_size=1, max_size=80))
    rows = best_fit_decreasing(np.array(sizes), capacity)
    held = np.bincount(rows, weights=sizes).astype(int)
    assert sorted((capacity - held).tolist()) == naive_best_fit_decreasing(sizes, capacity)


def test_a_document_that_fits_a_row_is_not_cut(tmp_path: Path) -> None:
    lengths = [5, 19, 1, 12, 30, 19, 7]
    rows = PackedRows(CutDocuments.of(stream_of(tmp_path, lengths), END, 20, SHIFTED))
    pieces = [following for _, following in pieces_of(read_all(rows))]
    assert sum(END in piece for piece in pieces) == len(lengths)
    assert len(pieces) == len(lengths) + 1  # the one of 30


@pytest.mark.parametrize("framing", [SHIFTED, WHOLE], ids=["shifted", "whole"])
def test_little_is_padding_where_documents_are_many(tmp_path: Path, framing: Framing) -> None:
    lengths = np.random.default_rng(1).integers(1, 400, 900).tolist()
    rows = PackedRows(CutDocuments.of(stream_of(tmp_path, lengths, distinct=False), END, 256, framing))
    assert rows.tokens / (rows.samples * 256) > 0.99


def test_the_plan_depends_on_text_and_settings_alone(tmp_path: Path) -> None:
    lengths = [5, 19, 1, 12, 30, 19, 7]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = (stream_of(tmp_path / name, lengths, shards=shards) for name, shards in (("a", 1), ("b", 3)))
    first, second = (PackedRows(CutDocuments.of(stream, END, 20, SHIFTED)) for stream in (one, other))
    assert np.array_equal(read_all(first).tokens, read_all(second).tokens)
    again = PackedRows(CutDocuments.of(one, END, 20, SHIFTED))
    assert first.fingerprint == again.fingerprint
    kinds = {
        first.fingerprint,
        one.fingerprint,
        GroupedRows(first.cut).fingerprint,
        PackedRows(CutDocuments.of(one, END, 21, SHIFTED)).fingerprint,
        PackedRows(CutDocuments.of(one, END, 20, WHOLE)).fingerprint,
    }
    assert len(kinds) == 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_predicts_every_token_once_on_any_number_of_ranks(tmp_path: Path, kind: str, world: int) -> None:
    lengths = [5, 19, 1, 12, 50, 19, 7, 3, 3, 28]
    stream = stream_of(tmp_path, lengths)
    rows = KINDS[kind](CutDocuments.of(stream, END, 16, SHIFTED))
    ranks = [list(evaluation_rows(rows, 3, rank, world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for rank in ranks for batch in rank]
    assert all(len(batch) == 3 for batch in batches)
    targets = np.concatenate([batch.following[batch.following >= 0] for batch in batches])
    assert sorted(targets.tolist()) == sorted(stream.take(np.arange(stream.tokens)).tolist())


def test_a_context_without_room_and_a_text_without_documents_are_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'model.context' is 2, and the task needs 2 positions"):
        CutDocuments.of(stream_of(tmp_path, [4]), END, 2, WHOLE)
    with pytest.raises(CorpusError, match="no documents"):
        CutDocuments.of(stream_of(tmp_path, [0, 0]), END, 8, SHIFTED)


def test_a_split_is_looked_through_for_a_long_document_no_further_than_to_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.data.pieces.BEGINNING", 10)
    near, far = tmp_path / "near", tmp_path / "far"
    for folder in (near, far):
        folder.mkdir()
    late = stream_of(far, [2, 2, 2, 8, 3])
    assert longest_document(late, END) == 8
    assert [holds_document(late, END, least) for least in (2, 8, 9)] == [True, True, False]
    early = stream_of(near, [7, 9, 3])
    monkeypatch.setattr(TokenStream, "find", lambda *_: pytest.fail("all of it was read"))
    assert holds_document(early, END, 7)
