"""What a frozen trunk gives of every text: computed once, kept on disk, and looked up ever after.

A frozen trunk that drops nothing gives the same in every epoch, so all that training needs of it is a table in float32: one
vector a text where pooling needs no learning, else one a token. Ranks compute equal shares, in batches of similar lengths;
those of a machine write into one file, which all of them map into memory, and machines exchange what the others lack.

The file stays in the user's cache folder, under a name made of all that its numbers depend on: weights and shape of the
trunk, the tokens of all texts, pooling, precision, the program. All such files take `KEPT_BYTES` at most; those that were
not used for longest go first. A table that would be larger by itself is not made: the trunk is then computed each time.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor

from shoal.core.errors import ShoalError
from shoal.core.files import sync_folder
from shoal.core.machine import cache_folder, code_fingerprint
from shoal.core.recipe import Recipe
from shoal.data.examples.rows import LabelledRows, Layout, Piece, collate
from shoal.models.head_only import HeadOnly
from shoal.models.heads import places
from shoal.models.transformer import Transformer
from shoal.parallel.wire import Wire, digest
from shoal.parallel.world import World
from shoal.tasks.labelled import labelled_batch
from shoal.train.model_setup import use_native_kernels
from shoal.train.setup import make_precision
from shoal.train.tuning import HEAD

KEPT_BYTES = 8 << 30
"""Of all tables."""

TOGETHER = 8192
"""Tokens of a forward pass."""

EXCHANGED = 1 << 16
"""Rows of the table that machines exchange at a time."""

ABANDONED = 24 * 3600.0
"""Seconds after which a file that was begun is nobody's."""


@dataclass(frozen=True)
class Trunk:
    """What fills a table: the model, the pieces that it reads, laid out so, and the row at which each piece's begin.

    `pooled`: one row a piece, else one a token. `quiet`: how far it is is not shown.
    """

    model: Transformer
    pieces: Sequence[Piece]
    starts: NDArray[np.int64]
    pooled: bool
    layout: Layout
    precision: str
    quiet: bool = False


def looked_up(
    model: Transformer, splits: Sequence[LabelledRows], recipe: Recipe, world: World, quiet: bool = False
) -> tuple[Transformer, list[LabelledRows], list[str]]:
    """The model and its rows, where its trunk is frozen: the head, places in a table, and what is to be told.

    As they are where the trunk learns, where texts vary from epoch to epoch, or where the recipe wants no table. `quiet`: no
    progress is shown.
    """
    varied = any(rows.vary is not None for rows in splits) or recipe.regular.adversarial > 0
    if recipe.tuning.what != "frozen" or not recipe.tuning.cache or varied or recipe.parallel.tensor > 1:
        return model, list(splits), []
    pooled = model.config.head == "sequence" and model.config.pooling != "attention"
    pieces = [piece for rows in splits for sample in rows.all for piece in sample]
    places_of = [1 if pooled else len(piece.tokens) for piece in pieces]
    starts = np.cumsum(places_of, dtype=np.int64) - places_of
    size = sum(places_of) * model.config.dim * 4
    if size > KEPT_BYTES:
        told = f"what the trunk gives would take {size / 1e9:,.1f} GB, more than is kept: it is computed in every epoch"
        return model, list(splits), [told]
    began = time.perf_counter()
    trunk = Trunk(model, pieces, starts, pooled, splits[0].layout, recipe.train.precision, quiet)
    path = cache_folder() / "features" / f"{_key(trunk, world)}.f32"
    shape = sum(places_of), model.config.dim
    found = _is_there(path, shape, Wire(world))
    if not found:
        _make(path, shape, trunk, world)
    what = f"what the trunk gives of {len(pieces):,} texts, {size / 1e6:,.1f} MB"
    told = f"{what}: " + (
        f"found in {path}" if found else f"computed in {time.perf_counter() - began:.1f} s, kept in {path}"
    )
    every = iter(starts.tolist())
    return HeadOnly(model, _mapped(path, shape)), [_numbered(rows, every, pooled) for rows in splits], [told]


def _key(trunk: Trunk, world: World) -> str:
    """A name for a table: a hash of what decides its numbers."""
    shape = replace(trunk.model.config, outputs=1, head_dropout=0.0)
    told = hashlib.sha256(
        repr((shape, trunk.pooled, trunk.precision, world.device.type, torch.__version__, code_fingerprint())).encode()
    )
    for name, value in trunk.model.state_dict().items():
        if not name.startswith(HEAD):
            told.update(name.encode() + digest(value))
    for piece in trunk.pieces:
        told.update(f"{len(piece.tokens)} {piece.prefix} {piece.segments is not None}\0".encode())
        for array in (piece.tokens, piece.segments):
            told.update(b"" if array is None else np.ascontiguousarray(array, dtype=np.int64).tobytes())
    return told.hexdigest()[:32]


def _numbered(rows: LabelledRows, starts: Iterator[int], pooled: bool) -> LabelledRows:
    """The rows, whose tokens are places of the table; to a ledger they are the texts that they were."""
    samples = [
        tuple(
            replace(
                piece,
                tokens=next(starts) + np.arange(1 if pooled else len(piece.tokens)),
                targets=None if pooled else piece.targets,
                segments=None,
                prefix=0,
            )
            for piece in sample
        )
        for sample in rows.all
    ]
    numbered = LabelledRows(samples, causal=False, layout="joined")
    numbered.fingerprint, numbered.context = rows.fingerprint, rows.context
    return numbered


def _is_there(path: Path, shape: tuple[int, int], wire: Wire) -> bool:
    """Whether every rank finds the table, which counts as a use of it."""
    there = False
    with suppress(OSError):
        there = path.stat().st_size == shape[0] * shape[1] * 4
        os.utime(path)
    return all(wire.gather_objects(there))


def _mapped(path: Path, shape: tuple[int, int], shared: bool = False) -> Tensor:
    return torch.from_file(str(path), shared=shared, size=shape[0] * shape[1], dtype=torch.float32).view(shape)


def _make(path: Path, shape: tuple[int, int], trunk: Trunk, world: World) -> None:
    """Compute the table on all ranks, and put it there on each machine; `ShoalError` where there is no room for it."""
    wire = Wire(world)
    first = world.local_rank == 0
    process = wire.gather_objects(os.getpid())[world.rank - world.local_rank]
    temporary = path.with_name(f".{path.name}.{process}.tmp")
    try:
        problem = _make_room(temporary, shape[0] * shape[1] * 4) if first else None
        if problem := next(filter(None, wire.gather_objects(problem)), None):
            raise ShoalError(
                f"{path.parent}: no room for what the frozen trunk gives: {problem}; make some, name another place by "
                "XDG_CACHE_HOME, or compute it in every epoch: --tuning.cache false"
            )
        table = _mapped(temporary, shape, shared=True)
        _fill(table, trunk, world)
        wire.gather_objects(None)
        if world.local_size < world.size:  # the other machines have the other rows
            for block in table.split(EXCHANGED):
                whole = (block if first else torch.zeros_like(block)).to(world.device, copy=True)
                wire.sum(whole)
                if first:
                    block.copy_(whole)
        if first:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.rename(path)
            sync_folder(path.parent)
        wire.gather_objects(None)
    finally:
        if first:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _make_room(temporary: Path, size: int) -> str | None:
    """Remove what was not used for longest, and take the room; says what stands in the way."""
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        for file in temporary.parent.glob(".*.tmp"):
            if time.time() - file.stat().st_mtime > ABANDONED:
                file.unlink(missing_ok=True)
        kept = sorted(temporary.parent.glob("*.f32"), key=lambda file: file.stat().st_mtime)
        total = sum(file.stat().st_size for file in kept)
        for file in kept:
            if total + size <= KEPT_BYTES:
                break
            total -= file.stat().st_size
            file.unlink(missing_ok=True)  # whoever has it mapped keeps it
        with temporary.open("wb") as file_of_its_own:
            if hasattr(os, "posix_fallocate"):  # a map of a file without room would end the process when it is written to
                os.posix_fallocate(file_of_its_own.fileno(), 0, size)
            else:
                file_of_its_own.truncate(size)
    except OSError as error:
        return error.strerror or str(error)
    return None


@torch.no_grad()
def _fill(table: Tensor, trunk: Trunk, world: World) -> None:
    """Compute this rank's share."""
    model, pieces, starts = trunk.model, trunk.pieces, trunk.starts
    use_native_kernels(model, trunk.precision, TOGETHER)
    model.eval()
    batches = [*_batches([len(piece.tokens) for piece in pieces], world)]
    for chosen in _told(batches, len(pieces), world.is_main and not trunk.quiet):
        its = [pieces[number] for number in chosen]
        sequences = collate(its, chosen, np.zeros(1, dtype=np.uint64), model.config.causal, trunk.layout)
        with make_precision(trunk.precision, world.device):
            batch = labelled_batch(sequences, world.device)
            assert batch.pieces is not None
            found = batch.pieces
            hidden_ND = model(batch.tokens, reach=batch.reach, segments_BT=batch.segments).flatten(0, 1).float()
        if trunk.pooled:
            assert model.task_head is not None
            table[torch.from_numpy(starts[chosen])] = model.task_head.pool(hidden_ND, found.starts, found.lengths).cpu()
        else:
            _, place_M = places(found.starts, found.lengths)
            where = chain.from_iterable(
                range(starts[number], starts[number] + len(pieces[number].tokens)) for number in chosen
            )
            table[torch.tensor([*where])] = hidden_ND[place_M].cpu()
    model.train()


def _told(batches: Sequence[list[int]], texts: int, shown: bool) -> Iterable[list[int]]:
    """The batches, which take about as long each: how far they are is shown, as long texts take minutes."""
    console = Console(stderr=True, highlight=False)
    if shown and not console.is_terminal:
        console.print(f"computing what the frozen trunk gives of {texts:,} texts, once")
    return track(batches, "frozen trunk, once", console=console, transient=True, disable=not (shown and console.is_terminal))


def _batches(lengths: Sequence[int], world: World) -> Iterator[list[int]]:
    """This rank's share of the pieces, by number, in batches of similar lengths, the longest first."""
    order = np.argsort(lengths, kind="stable")[::-1]
    batches: list[list[int]] = []
    for number in order.tolist():
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > TOGETHER:
            batches.append([])
        batches[-1].append(number)
    return iter(batches[world.rank :: world.size])
