"""A headless Chromium for tests of the page."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

__all__ = ["chromium", "chromium_path"]

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def chromium_path() -> str:
    """Where Chromium is; where there is none, the test is skipped, or fails if P2E_REQUIRE_BROWSER is set."""
    if (found := next(filter(None, map(shutil.which, NAMES)), None)) is not None:
        return found
    reason = "no Chromium is there; install it (Debian: apt-get install chromium)"
    if os.environ.get("P2E_REQUIRE_BROWSER"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=[*QUIET])
        try:
            yield browser
        finally:
            browser.close()
