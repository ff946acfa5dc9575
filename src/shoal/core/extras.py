"""Other people's libraries: those that only some work needs, which come with an extra of Shoal's, and their talk."""

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shoal.core.errors import InputError


def library(name: str, extra: str) -> Any:
    """The module; `InputError` that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"this needs {name.partition('.')[0]}: pip install 'shoal[{extra}]' ({error})") from None


@contextmanager
def silenced(*loggers: str) -> Iterator[None]:
    """Without what libraries' loggers say below an error, which would stand beside a command's own words."""
    found = [logging.getLogger(name) for name in loggers]
    before = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(found, before, strict=True):
            logger.setLevel(level)
