"""Libraries that only some work needs, which come with an extra of Shoal's."""

import importlib
from typing import Any

from shoal.core.errors import InputError


def library(name: str, extra: str) -> Any:
    """The module; `InputError` that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"this needs {name.partition('.')[0]}: pip install 'shoal[{extra}]' ({error})") from None
