"""What tests of the page share: a service and the page of it in a browser, and what one does there."""

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import chromium
from databases import Clock
from gateways import picture, services
from playwright.sync_api import Browser, Page, expect
from running import Running, running

from serve.jobs import JobStore
from serve.keys import Keys

__all__ = [
    "PNG", "WORDS", "Opened", "Serving", "ask", "browser", "finished", "opened", "requests", "script", "serving",
    "status", "stored",
]  # fmt: skip

Serving = Callable[..., Running]
Opened = Callable[..., Page]

WORDS = 'It\'s <b>hot</b>: "melt" $HOME `id` \\ 50%'
PATIENCE_MS = 20_000
PNG = {"name": "mine.png", "mimeType": "image/png", "buffer": picture()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        expect.set_options(timeout=PATIENCE_MS)
        yield found


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    """Starts a service; without keys unless limits of keys are given."""
    with ExitStack() as stack:

        def start(
            limits: dict[str, Any] | None = None,
            replicas: int = 1,
            worker: dict[str, Any] | None = None,
            **settings: Any,
        ) -> Running:
            made = services(tmp_path, Clock(), limits=limits)
            made = replace(made, settings=made.settings.model_copy(update={"events_s": 30, **settings}))
            if limits is None:
                made.keys = Keys()
            return stack.enter_context(running(made, replicas=replicas, **worker or {}))

        yield start


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opened]:
    """Opens the page; at the end nothing may have gone wrong in it, nor anything have been loaded from elsewhere.

    `errors`: a pattern of what the browser's console may say.
    """
    said: list[str] = []
    with ExitStack() as stack:

        def open_page(service: Running, *, errors: str = "nothing", **context: Any) -> Page:
            found = browser.new_context(**context)
            stack.callback(found.close)
            page = found.new_page()
            page.set_default_timeout(PATIENCE_MS)

            def listen(text: str) -> None:
                if not re.search(errors, text):
                    said.append(text)

            page.on("console", lambda message: listen(message.text) if message.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: listen(str(error)))
            page.on("request", lambda request: None if service.address in request.url else listen(request.url))
            page.goto(service.address)
            return page

        yield open_page
    assert said == []


def ask(page: Page, words: str = WORDS, file: dict[str, Any] | None = PNG) -> None:
    page.get_by_label("What should happen?").fill(words)
    if file is not None:
        page.locator("#file").set_input_files([file])  # pyright: ignore[reportArgumentType]
    page.get_by_role("button", name="Make").click()


def status(page: Page, slot: str) -> Any:
    return page.locator(f"#slot-{slot} .status")


def finished(page: Page, *slots: str) -> None:
    for slot in slots or ("base", "effect"):
        expect(status(page, slot)).to_have_text(re.compile("^Done in"), timeout=PATIENCE_MS)


def requests(store: JobStore) -> list[dict[str, Any]]:
    return [job.request | {"effect": job.effect_id} for job in store.page("local", order="asc").jobs]


def stored(service: Running, name: str) -> bytes:
    with service.services.artefacts.open(name) as file:
        return file.read()


def script(text: str, folder: Path, environment: dict[str, str] | None = None) -> str:
    """Runs copied commands as a user would -> what they print."""
    (folder / "picture.png").write_bytes(picture())
    known = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nowhere"}
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", text], cwd=folder, env=known | (environment or {}),
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
