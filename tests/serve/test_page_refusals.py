"""What the page says when something is wrong, and asks for: errors, keys, quotas."""

import re
from pathlib import Path

from gateways import FakePredictor, tokens
from pages import PNG, Opened, Serving, ask, finished, script, status
from playwright.sync_api import expect


def test_what_is_wrong_is_said(serving: Serving, opened: Opened) -> None:
    service = serving()
    page = opened(service, errors="status of (422|415|500)")
    message = page.get_by_role("alert").and_(page.locator("#message"))
    ask(page, "")
    expect(message).to_have_text("Say first what should happen.")
    ask(page, "x" * 2001)
    expect(message).to_have_text("prompt: String should have at most 2000 characters")
    ask(page, "it melts", {"name": "moving.png", "mimeType": "image/png", "buffer": b"GIF89a" + b"\0" * 50})
    expect(message).to_contain_text("the picture is no PNG, JPEG or WebP; send one of these")
    predictor = service.services.predictor
    assert isinstance(predictor, FakePredictor)
    predictor.error = RuntimeError("boom")
    ask(page, "another", PNG)
    expect(message).to_have_text("something went wrong on the server; it has been logged")
    predictor.error = None
    service.worker.failing = ("oom", "the renderer ran out of <i>memory</i>")
    ask(page, "another", None)
    for slot in ("base", "effect"):
        expect(status(page, slot)).to_have_text("the renderer ran out of <i>memory</i>")
    service.worker.failing = None
    ask(page, "another", None)
    finished(page)
    expect(message).to_be_hidden()


def test_a_key_is_asked_for(serving: Serving, opened: Opened, tmp_path: Path) -> None:
    service = serving(limits={})
    page = opened(service, errors="status of 401")
    key = tokens["alice"].removeprefix("Bearer ")
    dialog = page.get_by_role("dialog")
    ask(page)
    expect(dialog).to_contain_text("give an API key: Authorization: Bearer KEY")
    page.get_by_role("button", name="Not now").click()
    expect(page.locator("#message")).to_contain_text("give an API key")
    ask(page)
    for wrong, said in (("two words", "no API key"), ("p2e-wrong", "this API key is not known"), (key, "")):
        page.get_by_label("Key", exact=True).fill(wrong)
        page.get_by_role("button", name="Use it").click()
        if said:
            expect(dialog).to_contain_text(said)
    expect(dialog).to_be_hidden()
    finished(page)
    kept = page.evaluate("() => [localStorage.length, document.cookie, Object.values(sessionStorage)]")
    assert kept == [0, "", [key]]
    code = page.locator("#code-text")
    expect(code).to_contain_text('-H "Authorization: Bearer $P2E_API_KEY"')
    assert key not in (code.text_content() or "")
    done = script(code.text_content() or "", tmp_path, {"P2E_API_KEY": key})
    assert service.services.effects.page("alice").effects[0].id in done
    page.get_by_role("button", name="Key", exact=True).click()
    page.get_by_role("button", name="Forget it").click()
    assert page.evaluate("sessionStorage.length") == 0


def test_quotas_are_waited_for(serving: Serving, opened: Opened) -> None:
    service = serving(limits={"jobs": 1, "effects_per_minute": 1})
    page = opened(service, errors="status of 4(01|29)")
    page.clock.install()
    service.worker.go.clear()
    ask(page)
    page.get_by_label("Key", exact=True).fill(tokens["bob"].removeprefix("Bearer "))
    page.get_by_role("button", name="Use it").click()
    expect(status(page, "effect")).to_have_text("Queued")
    expect(status(page, "base")).to_have_text(
        re.compile(r"^1 jobs of this key have not ended; wait for one of them\. Trying again in \d+ s\.$")
    )
    service.worker.go.set()
    finished(page, "effect")
    page.clock.run_for(11_000)
    finished(page, "base")
    ask(page, "a second one", None)
    expect(page.locator("#message")).to_contain_text("1 new effects within a minute; wait a little. Trying again in")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#slot-effect .status")).to_have_text("Cancelled")
    expect(page.locator("#message")).to_be_hidden()
