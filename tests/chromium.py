"""A browser for tests of pages: the system's Chromium, without its window, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
"""Root has no sandbox, and a browser under test asks nobody for anything."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A Playwright `Browser`; skips, with the reason, where there is none. `CHROMIUM` in the environment names another."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pages are tested by playwright, which is not installed")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("pages are tested in Chromium, which is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=QUIET)
        try:
            yield browser
        finally:
            browser.close()
