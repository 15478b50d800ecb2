"""The page of a report: one file, nothing but text where text should be, readable in a browser and on a phone."""

import csv
import html.parser
import io
from pathlib import Path
from typing import Any

import pytest
from browser import chromium
from cli_runner import assert_mistake, run_cli, run_well
from small_run import small_run

from eval.report.findings import Findings
from eval.report.page import as_html
from eval.report.pictures import Pictures
from eval.report.tables import build
from eval.report.text import as_markdown, scores_csv

NASTY = "<script>alert(1)</script></style>\"'&amp;\u202e\u0000{{body}} =1+1 |x|" + "w" * 300
WORDS = {"name": "small", "prompt": NASTY.replace("\0", ""), "reason": f"={NASTY}", "error": NASTY, "category": NASTY}


class Parser(html.parser.HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page(folder: Path, budget: int = 1 << 20, **changes: Any) -> str:
    run = small_run(folder, **changes)
    return as_html(build(Findings.of(run.folder)), Pictures(str(run.folder), budget))


def test_one_file_that_needs_nothing_else(tmp_path: Path) -> None:
    found = Parser(page(tmp_path / "run"))
    assert not found.open and not {"script", "link", "iframe", "object", "base"} & set(found.elements)
    sources = [value for name, value in found.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert sources and all(value.startswith("data:image/jpeg;base64,") for value in sources)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    for words in ("Training effects", "OOD effects", "Zero-shot less each other method", "judge/1", "it effect_0s"):
        assert words in found.text
    assert found.elements.count("img") >= 16


def test_words_of_a_run_are_text(tmp_path: Path) -> None:
    text = page(tmp_path / "run", words=WORDS, unrendered={("Zero-shot", "effect_1", "s1"), ("Base", "effect_0", "s0")})
    found = Parser(text)
    assert not found.open and "script" not in found.elements and found.elements.count("style") == 1
    assert "<script>alert(1)</script></style>\"'&amp;" in found.text and "\u202e" not in text and "\0" not in text
    assert {name for name, _ in found.attributes} <= {
        "lang",
        "charset",
        "name",
        "content",
        "http-equiv",
        "class",
        "src",
        "alt",
    }


def test_words_of_a_run_are_no_formulas_and_no_markdown(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", words=WORDS)
    found = Findings.of(run.folder)
    for line in csv.DictReader(io.StringIO(scores_csv(found))):
        assert all(value[:1] not in ("=", "+", "-", "@", "\t", "\r") for value in line.values())
    text = as_markdown(build(found))
    assert "<script>" not in text.replace("\\<", "") and "\0" not in text


def test_pictures_keep_to_their_budget(tmp_path: Path) -> None:
    whole = page(tmp_path / "whole")
    assert len(whole) > 20_000 and "would not fit" not in whole
    small = page(tmp_path / "small", budget=5_000)
    assert len(small) < len(whole) - 10_000 and "pictures more would not fit this page" in small
    assert "<img" not in page(tmp_path / "none", budget=0)


def test_clips_that_cannot_be_shown_are_left_out(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    for path in (run.folder / "clips").glob("2*.mp4"):
        path.write_bytes(b"broken")
    text = as_html(build(Findings.of(run.folder)), Pictures(str(run.folder), 1 << 20))
    assert "Zero-shot: effect_0" not in text and "LoRA: effect_0" in text


def test_the_command(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    assert "## Methods: Training effects" in run_well("eval", "report", run.folder)
    files = sorted(path.name for path in (run.folder / "report").iterdir())
    assert files == ["report.html", "report.md", "scores.csv", "table.csv"]
    run_well("eval", "report", run.folder, "--focus", "LoRA", "--out", tmp_path / "b")
    assert "LoRA less each other method" in (tmp_path / "b" / "report.md").read_text()
    assert_mistake(run_cli("eval", "report", tmp_path / "none"), tmp_path / "none", "suite.json")
    assert_mistake(run_cli("eval", "report", run.folder, "--focus", "none"), "none", "Zero-shot")


@pytest.mark.slow
def test_in_a_browser(tmp_path: Path) -> None:
    """No error, no request, nothing wider than a phone."""
    (tmp_path / "report.html").write_text(page(tmp_path / "run", words=WORDS))
    with chromium() as browser:
        for width in (1280, 375):
            tab = browser.new_page(viewport={"width": width, "height": 800})
            problems: list[str] = []
            requests: list[str] = []
            tab.on("console", lambda message, problems=problems: problems.append(message.text))
            tab.on("pageerror", lambda error, problems=problems: problems.append(str(error)))
            tab.on("request", lambda asked, requests=requests: requests.append(asked.url))
            tab.goto((tmp_path / "report.html").as_uri())
            tab.locator("summary").first.click()
            assert not problems and all(url.startswith(("file:", "data:")) for url in requests)
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.locator("img").first.evaluate("image => image.naturalWidth") > 100
            tab.close()
