"""Ranks of tests start quickly."""

import sys

from shoal.parallel.world import World
from tests.ranks import run_ranks


def has_imported(world: World, name: str) -> bool:
    return name in sys.modules


def test_what_takes_seconds_to_import_is_there_when_a_rank_starts() -> None:
    """A name that can't be imported before ranks are started is left out without a word."""
    assert run_ranks(1, has_imported, "shoal.train.loop") == [True]
    assert run_ranks(1, has_imported, "transformers") == [True]
