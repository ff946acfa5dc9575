"""Errors: one tree, and the exit code that the user's shell sees."""

import inspect
import re

import pytest

from shoal.core import errors
from shoal.core.errors import (
    CheckpointError,
    CorpusError,
    InputError,
    Interrupted,
    RankError,
    RecipeError,
    ShoalError,
)

CLASSES = [found for _, found in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize(
    ("error", "parent", "code"),
    [
        (InputError, ShoalError, 2),
        (RecipeError, InputError, 2),
        (CorpusError, InputError, 2),
        (CheckpointError, ShoalError, 1),
        (RankError, ShoalError, 1),
        (Interrupted, ShoalError, 130),
        (ShoalError, Exception, 1),
    ],
)
def test_an_error_has_its_parent_and_exit_code(error: type[ShoalError], parent: type, code: int) -> None:
    assert error.__bases__ == (parent,)
    assert error("why").exit_code == code


@pytest.mark.parametrize("error", CLASSES)
def test_the_module_draws_every_error_with_its_exit_code(error: type[ShoalError]) -> None:
    drawn = re.search(rf"{error.__name__}\b(?:\s+exit (\d+))?", errors.__doc__ or "")
    assert drawn is not None
    assert drawn[1] in (None, str(error.exit_code))
