"""One browser, and one server of each kind, for all tests of the page."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest

from tests.chromium import chromium
from tests.serve.http.servers import Server, serving
from tests.serve.page.pages import Tab, open_tab, talkative_chat

Open = Callable[..., AbstractContextManager[Tab]]


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Chromium."""
    with chromium() as started:
        yield started


@pytest.fixture(scope="package")
def chat(browser: Any) -> Iterator[Server]:
    """A server of a model that talks without end."""
    with serving(talkative_chat()) as server:
        yield server


@pytest.fixture
def open_chat(browser: Any, chat: Server) -> Open:
    """Open a tab on it."""
    return partial(open_tab, browser, chat.url)
