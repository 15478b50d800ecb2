"""What the page gives to copy does what was done there."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gateways import picture
from pages import PNG, WORDS, Opened, Serving, ask, finished, requests, script, stored
from PIL import Image
from playwright.sync_api import Page, expect
from running import Running

from p2e.render.video import read_video


@pytest.mark.parametrize(
    "words", [WORDS, "@/etc/hostname;type=text/plain", "'; touch gone; '", "two\nlines — «ü» \u2028 😀"]
)
def test_the_commands_do_the_same(serving: Serving, opened: Opened, tmp_path: Path, words: str) -> None:
    service = serving()
    page = opened(service, permissions=["clipboard-read", "clipboard-write"])
    page.get_by_label("Strength").fill("0.5")
    ask(page, words)
    finished(page)
    text = copied(page, "curl")
    folder = tmp_path / "mine"
    folder.mkdir()
    printed = script(text, folder)
    (made,) = service.services.effects.page("local").effects  # no other than the page's own
    assert json.loads(printed.partition("\n")[0])["id"] == made.id
    first, second = the_same(service, folder)
    assert first["prompt"] == second["prompt"] == words.replace("\n", " ") and first["strength"] == 0.5


@pytest.mark.parametrize("sample", [False, True])
def test_the_program_does_the_same(serving: Serving, opened: Opened, tmp_path: Path, sample: bool) -> None:
    service = serving()
    page = opened(service, permissions=["clipboard-read", "clipboard-write"])
    page.get_by_label("Blend with a second effect").check()
    page.get_by_label("The second effect", exact=True).fill("it floats")
    page.get_by_label("Share of the second effect").fill("0.3")
    expect(page.locator("#picture-name")).to_have_text("hamster")
    ask(page, file=None if sample else PNG)
    finished(page)
    text = copied(page, "Python")
    assert "with Client(" in text and "0.7), (second.id, 0.3)" in text
    folder = tmp_path / "mine"
    folder.mkdir()
    if not sample:
        (folder / "picture.png").write_bytes(picture())
    done = subprocess.run([sys.executable, "-c", text], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(service.services.effects.page("local").effects) == 3  # no other than the page's own
    the_same(service, folder)


def copied(page: Page, language: str) -> str:
    page.get_by_text("The same from your own program").click()
    page.get_by_role("button", name=language).click()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    text = page.evaluate("navigator.clipboard.readText()")
    assert text == page.locator("#code-text").text_content()
    return text


def the_same(service: Running, folder: Path) -> list[dict[str, Any]]:
    """Holds the four jobs and the files of a folder against each other -> the first two jobs."""
    jobs = requests(service.services.jobs)
    for job in jobs:
        with service.services.artefacts.open(job.pop("picture")) as file:
            job["pixels"] = hashlib.sha256(Image.open(file).convert("RGB").tobytes()).hexdigest()
    assert len(jobs) == 4 and jobs[:2] == jobs[2:] and jobs[0]["effect"] is not None is jobs[1]["effect"]
    effect = service.services.effects.get(jobs[0]["effect"], "local")
    assert (folder / "effect.safetensors").read_bytes() == stored(service, effect.artefact)
    assert len(read_video(folder / "effect.mp4")) == len(read_video(folder / "base.mp4")) == 9
    names = {path.name for path in folder.iterdir()}
    assert names - {"picture.png"} == {"base.mp4", "effect.mp4", "effect.safetensors"}
    return jobs[:2]
