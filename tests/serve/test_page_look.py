"""The gallery, pictures, a phone, the keyboard, less motion."""

from pathlib import Path

import pytest
from pages import Opened, Serving, ask, finished, requests, script
from playwright.sync_api import expect


def test_the_gallery_fills_in_the_form(serving: Serving, opened: Opened, tmp_path: Path) -> None:
    service = serving()
    page = opened(service)
    expect(page.locator("#picture-name")).to_have_text("hamster")
    expect(page.locator(".card")).to_have_count(12)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator(".card")).to_have_count(36)
    page.get_by_label("Search the effects").fill("skull")
    expect(page.locator(".card")).to_have_count(2)
    expect(page.locator(".card").nth(1)).to_contain_text("not in training")
    clip = page.locator(".card video").first
    page.locator(".card").first.scroll_into_view_if_needed()
    for _ in range(100):
        if clip.evaluate("v => v.currentTime > 0 && v.videoWidth == 192"):
            break
        page.wait_for_timeout(100)
    else:
        pytest.fail("the clip does not play")
    page.locator(".card").first.click()
    expect(page.get_by_label("What should happen?")).to_have_value(
        "The surface melts away from top to bottom and a skull comes to light underneath."
    )
    expect(page.locator("#picture-name")).to_have_text("prince")
    expect(page.get_by_role("radio", name="prince").first).to_be_checked()
    page.get_by_role("button", name="Make it").click()
    finished(page)
    text = page.locator("#code-text").text_content() or ""
    script(text, tmp_path)
    assert requests(service.services.jobs)[0]["effect"] == requests(service.services.jobs)[2]["effect"]
    assert "/gallery/pictures/" in text
    page.get_by_role("radio", name="watermelon").first.check(force=True)
    expect(page.locator("#picture-name")).to_have_text("watermelon")
    expect(page.locator("#slot-base video")).to_be_hidden()


def test_without_a_gallery(serving: Serving, opened: Opened) -> None:
    page = opened(serving(gallery=None))
    expect(page.locator("#model")).to_have_text("world")
    assert page.locator("#gallery").is_hidden() and page.locator("#samples").is_hidden()
    ask(page, "it melts", None)
    expect(page.locator("#message")).to_have_text("Choose a picture first.")
    ask(page)
    finished(page)


def test_pictures_are_dropped_and_pasted(serving: Serving, opened: Opened) -> None:
    page = opened(serving(gallery=None))
    for kind, name in (("drop", "dropped.png"), ("paste", "pasted.png")):
        page.evaluate(
            """([kind, name]) => {
              const moved = new DataTransfer();
              moved.items.add(new File([new Uint8Array([1, 2, 3])], name, { type: "image/png" }));
              const about = { bubbles: true, dataTransfer: moved, clipboardData: moved };
              const event = kind === "drop" ? new DragEvent(kind, about) : new ClipboardEvent(kind, about);
              document.getElementById("drop").dispatchEvent(event);
            }""",
            [kind, name],
        )
        expect(page.locator("#picture-name")).to_have_text(name)


def test_on_a_phone(serving: Serving, opened: Opened) -> None:
    service = serving()
    page = opened(service, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, color_scheme="dark")

    def fits() -> bool:
        return page.evaluate("document.documentElement.scrollWidth <= innerWidth && innerWidth === 390")

    expect(page.locator(".card")).to_have_count(12)
    assert fits()
    page.get_by_label("Blend with a second effect").check()
    page.get_by_label("The second effect", exact=True).fill("y" * 300)
    ask(page, "x" * 300)
    expect(page.locator("#result")).to_be_in_viewport()
    finished(page)
    page.get_by_text("The same from your own program").click()
    page.get_by_text("Scene and seed").click()
    assert fits()
    page.get_by_role("button", name="Key", exact=True).click()
    assert fits() and page.get_by_role("dialog").is_visible()
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, summary, .button")]
          .filter((e) => e.offsetParent && e.getBoundingClientRect().height < 24).map((e) => e.textContent)"""
    )
    assert small == []


def test_the_keyboard_is_enough(serving: Serving, opened: Opened) -> None:
    page = opened(serving())
    expect(page.locator("#picture-name")).to_have_text("hamster")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_label("What should happen?")).to_be_focused()
    page.keyboard.type("it melts")
    page.keyboard.press("Control+Enter")
    finished(page)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input, textarea, button, video:not([aria-hidden])")]
          .filter((e) => !(e.labels?.length || e.ariaLabel || e.getAttribute("aria-labelledby") || e.textContent.trim()
            || e.closest(".screen"))).map((e) => e.outerHTML)"""
    )
    assert nameless == []


def test_less_motion_for_who_asks_for_it(serving: Serving, opened: Opened) -> None:
    page = opened(serving(), reduced_motion="reduce")
    ask(page)
    finished(page)
    expect(page.get_by_role("button", name="Play", exact=True)).to_be_enabled()
    page.wait_for_timeout(300)
    assert page.evaluate("() => [...document.querySelectorAll('video')].every((v) => v.paused)")
