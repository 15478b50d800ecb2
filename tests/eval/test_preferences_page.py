"""The page that asks, in a browser: by keys and by touch, back and again, and after a break."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser import chromium
from PIL import Image
from playwright.sync_api import Page, Route, expect
from raters import asked
from small_run import METHODS, SmallRun, small_run

from eval.preferences.votes import read_votes
from eval.run_files import RunFiles

pytestmark = pytest.mark.slow
NASTY = '<img src=x onerror=alert(1)>\u202e "quotes" ' + "w" * 300


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with chromium() as found:
        yield found


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    made = small_run(tmp_path / "run", words={"prompt": NASTY})
    (made.folder / "images").mkdir()
    for scene in made.suite.scenes:
        Image.new("RGB", (64, 48)).save(made.folder / "images" / f"{scene.id}.png")
    return made


@contextmanager
def opened(browser, address: str, width: int = 1000, touch: bool = False, faults: bool = False) -> Iterator[Page]:
    """The page; it must not complain, nor ask anyone else, nor be wider than the screen."""
    context = browser.new_context(viewport={"width": width, "height": 800}, has_touch=touch)
    page = context.new_page()
    page.set_default_timeout(20_000)
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: requests.append(asked.url))
    page.goto(address)
    yield page
    assert faults or not complaints
    assert all(url.startswith((address, "data:", f"blob:{address.split('/', 3)[0]}//")) for url in requests)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def ready(page: Page, place: int, of: int = 5) -> None:
    """Both clips of a pair play."""
    expect(page.locator("#progress")).to_contain_text(f"{place} of {of}")
    expect(page.locator("[data-choice=left]")).to_be_enabled()
    assert page.evaluate("[...document.querySelectorAll('video')].every((video) => video.videoWidth === 32)")


def choices(run: SmallRun, pairs: tuple) -> list[str | None]:
    found = {vote.cell: vote.choice for vote in read_votes(RunFiles.of(run.folder))}
    return [found.get(pair.cell) for pair in pairs]


def test_by_keys(browser, run: SmallRun):
    with asked(run.folder, count=5) as server, opened(browser, server.address) as page:
        pairs = server.session.pairs
        ready(page, 1)
        assert page.locator("#prompt").inner_text().startswith("<img src=x onerror=alert(1)>")
        assert not [title for title, _ in METHODS if title in page.content()]
        page.keyboard.press("1")
        ready(page, 2)
        page.keyboard.press("b")
        ready(page, 3)
        assert choices(run, pairs) == ["left", "right", None, None, None]
        page.keyboard.press("ArrowLeft")
        ready(page, 2)
        expect(page.locator("[data-choice=right]")).to_have_attribute("aria-pressed", "true")
        page.keyboard.press("4")  # another answer, then on to the first without one
        ready(page, 3)
        page.keyboard.press("ArrowRight")
        ready(page, 4)
        page.keyboard.press("Space")
        page.keyboard.press("3")
        ready(page, 5)
        page.keyboard.press("3")
        ready(page, 3)  # the one that was passed over
        page.keyboard.press("a")
        expect(page.locator("#progress")).to_have_text("all 5 answered, thank you")
        assert choices(run, pairs) == ["left", "bad", "left", "equal", "equal"]
        page.reload()
        expect(page.locator("#progress")).to_have_text("all 5 answered, thank you")


def test_by_touch_on_a_phone_and_after_a_break(browser, run: SmallRun):
    with asked(run.folder, count=5) as server, opened(browser, server.address, 375, touch=True) as page:
        pairs = server.session.pairs
        ready(page, 1)
        page.locator("[data-choice=equal]").tap()
        ready(page, 2)
        page.locator("#next").tap()
        ready(page, 3)
        page.locator("[data-choice=bad]").tap()
        ready(page, 4)
    with asked(run.folder, count=5) as server, opened(browser, server.address, 375, touch=True) as page:
        ready(page, 2)
        page.locator("[data-choice=left]").tap()
        ready(page, 4)
        page.locator("#back").tap()
        ready(page, 3)
        expect(page.locator("[data-choice=bad]")).to_have_attribute("aria-pressed", "true")
        assert choices(run, pairs) == ["equal", "left", "bad", None, None]
        for button in page.locator("#answers button").all():
            box = button.bounding_box()
            assert box is not None and box["height"] >= 44


def test_the_clip_of_a_side_is_the_one_that_is_kept(browser, run: SmallRun):
    """Clips differ in their background; what is seen on a side is what the vote names, however quickly one leafs."""
    with asked(run.folder, count=5) as server, opened(browser, server.address) as page:
        ready(page, 1)
        for _ in range(6):
            page.keyboard.press("ArrowRight")
            page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowRight")
        ready(page, 2)
        seen = page.evaluate(
            """[...document.querySelectorAll("video")].map((video) => {
              const canvas = document.createElement("canvas");
              [canvas.width, canvas.height] = [32, 32];
              const context = canvas.getContext("2d");
              context.drawImage(video, 0, 0);
              return context.getImageData(30, 30, 1, 1).data[0];
            })"""
        )
        pair = server.session.pairs[1]
        levels = [20 + 40 * [title for title, _ in METHODS].index(row.method) for row in (pair.left, pair.right)]
        assert seen == pytest.approx(levels, abs=8)


def test_what_goes_wrong_is_told(browser, run: SmallRun):
    def cut_off(route: Route) -> None:
        route.abort() if route.request.method == "POST" else route.continue_()

    with asked(run.folder, count=5) as server, opened(browser, server.address, faults=True) as page:
        pairs = server.session.pairs
        page.route("**/pairs/1/left", lambda route: route.fulfill(body=b"broken", content_type="video/mp4"))
        page.route("**/pairs/2/right", lambda route: route.continue_(url=f"{server.address}pairs/2/none"))
        page.route("**/pairs/0", cut_off)
        ready(page, 1)
        page.keyboard.press("1")
        expect(page.locator("#message")).to_contain_text("Not kept: The program in the terminal does not answer.")
        assert choices(run, pairs) == [None] * 5
        page.unroute("**/pairs/0")
        page.keyboard.press("1")
        expect(page.locator("#message")).to_have_text("A clip cannot be played; go on with Next.")
        expect(page.locator("[data-choice=left]")).to_be_disabled()
        page.keyboard.press("2")  # nobody saw both
        page.locator("#next").click()
        expect(page.locator("#message")).to_have_text("nothing is here")
        page.locator("#next").click()
        ready(page, 4)
        page.keyboard.press("2")
        ready(page, 5)
        assert choices(run, pairs) == ["left", None, None, "right", None]
