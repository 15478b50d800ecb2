"""The page in a real browser, over a real gateway: from words to two videos, their files, blends, cancelling."""

import re

import pytest
from gateways import FakePredictor
from pages import WORDS, Opened, Serving, ask, finished, requests, status, stored
from playwright.sync_api import Page, expect

# Keeps what each slot says, with the value of its bar where there is one to be seen.
RECORD = """() => {
  window.seen = [];
  for (const slot of document.querySelectorAll(".slot")) {
    const [text, bar] = [slot.querySelector(".status"), slot.querySelector("progress")];
    const keep = () => window.seen.push([slot.id, text.textContent, bar.hidden || bar.position < 0 ? null : bar.value]);
    new MutationObserver(keep).observe(text, { childList: true });
  }
}"""


def downloaded(page: Page, button: str) -> tuple[str, bytes]:
    with page.expect_download() as info:
        page.get_by_role("button", name=button).click()
    return info.value.suggested_filename, info.value.path().read_bytes()


def test_from_words_to_two_videos(serving: Serving, opened: Opened) -> None:
    service = serving(worker={"step_s": 0.15})
    service.worker.go.clear()
    page = opened(service)
    page.evaluate(RECORD)
    ask(page)
    for slot in ("base", "effect"):
        expect(status(page, slot)).to_have_text("Queued")
    service.worker.go.set()
    finished(page)
    seen = page.evaluate("window.seen")
    for slot in ("base", "effect"):
        shown = [(text, value) for name, text, value in seen if name == f"slot-{slot}"]
        assert ("Queued", None) in shown and [shown.index((f"Rendering, {part}%", part)) for part in (25, 50, 75)]
    for slot in ("base", "effect"):
        video = page.locator(f"#slot-{slot} video")
        expect(video).to_be_visible()
        assert video.evaluate("v => [v.readyState >= 2, v.videoWidth, v.videoHeight]") == [True, 48, 32]
        expect(page.locator(f"#slot-{slot} progress")).to_be_hidden()
    effect, base = requests(service.services.jobs)
    (made,) = service.services.effects.page("local").effects
    assert effect["effect"] == made.id and base["effect"] is None and made.source["prompt"] == WORDS
    assert all(job["prompt"] == WORDS and job["seed"] == 0 and job["strength"] == 1 for job in (effect, base))
    assert page.locator("b").count() == 0 and page.locator("#chips button").inner_text() == WORDS  # text, not HTML
    name, data = downloaded(page, "LoRA .safetensors")
    assert name == f"{made.id}.safetensors" and stored(service, made.artefact) == data
    name, data = downloaded(page, "Video .mp4")
    job = next(job for job in service.worker.done if job.effect_id == made.id)
    assert name == f"{job.id}.mp4" and stored(service, f"{job.id}-1.mp4") == data


def test_the_two_play_in_step(serving: Serving, opened: Opened) -> None:
    page = opened(serving())
    ask(page)
    finished(page)
    times = "() => [...document.querySelectorAll('.screen video')].map((v) => v.currentTime)"
    seen = set()
    for _ in range(12):  # over more than one loop
        page.wait_for_timeout(150)
        base, effect = page.evaluate(times)
        assert abs(base - effect) < 0.25
        seen.add(round(base, 1))
    assert len(seen) >= 3
    page.get_by_role("button", name="Pause", exact=True).click()
    still = page.evaluate(times)
    page.wait_for_timeout(300)
    assert page.evaluate(times) == still
    page.get_by_role("button", name="Play", exact=True).click()
    page.wait_for_timeout(300)
    assert page.evaluate(times) != still


def test_strength_renders_the_effect_alone(serving: Serving, opened: Opened) -> None:
    service = serving()
    page = opened(service)
    ask(page)
    finished(page)
    base = page.locator("#slot-base video").get_attribute("src")
    first = page.locator("#slot-effect video").get_attribute("src")
    page.get_by_label("Strength").fill("-0.5")
    expect(page.locator("#slot-effect video")).not_to_have_attribute("src", first or "")
    assert page.locator("#slot-base video").get_attribute("src") == base
    assert [job["strength"] for job in requests(service.services.jobs)] == [1, 1, -0.5]
    assert requests(service.services.jobs)[2]["effect"] is not None
    assert len(service.services.effects.page("local").effects) == 1


def test_scene_and_seed_are_of_both(serving: Serving, opened: Opened) -> None:
    service = serving()
    page = opened(service)
    page.get_by_text("Scene and seed").click()
    page.get_by_label("Words for the scene").fill("a fox in the snow")
    page.get_by_label("Seed").fill("41")
    ask(page)
    finished(page)
    assert [(job["prompt"], job["seed"]) for job in requests(service.services.jobs)] == [("a fox in the snow", 41)] * 2
    ask(page, "it floats", None)
    finished(page)
    assert len(requests(service.services.jobs)) == 3  # the video without an effect is there already
    page.get_by_role("button", name="Random").click()
    ask(page, "it floats", None)
    finished(page)
    jobs = requests(service.services.jobs)
    assert len(jobs) == 5 and jobs[3]["seed"] == jobs[4]["seed"] != 41
    page.get_by_label("Seed").fill("-1")
    ask(page, "it floats", None)
    expect(page.locator("#message")).to_contain_text("The seed is a whole number")


def test_a_blend(serving: Serving, opened: Opened) -> None:
    service = serving()
    predictor = service.services.predictor
    assert isinstance(predictor, FakePredictor)
    page = opened(service)
    page.get_by_label("Blend with a second effect").check()
    page.get_by_label("The second effect", exact=True).fill("it floats")
    page.get_by_label("Share of the second effect").fill("0.25")
    expect(page.get_by_text("75% of the first, 25% of the second")).to_be_visible()
    ask(page, "it melts")
    finished(page)
    assert [source["prompt"] for source in predictor.made[:2]] == ["it melts", "it floats"]
    found = service.services.effects.page("local").effects
    names = {effect.source.get("prompt", "blend"): effect.id for effect in found}
    assert {name: weight for name, _, weight in predictor.made[2]["blend"]} == {
        names["it melts"]: 0.75, names["it floats"]: 0.25,
    }  # fmt: skip
    assert [job["effect"] for job in requests(service.services.jobs)] == [names["blend"], None]
    page.get_by_label("Share of the second effect").fill("1")
    expect(page.locator("#chips button")).to_have_count(4)
    finished(page)
    assert len(predictor.made) == 4 and len(requests(service.services.jobs)) == 3
    texts = page.locator("#chips button").all_inner_texts()
    assert texts[0] == "it melts + it floats (100%)"
    assert sorted(texts[1:]) == ["it floats", "it melts", "it melts + it floats (25%)"]
    page.locator("#chips").get_by_text("it floats", exact=True).click()
    expect(page.get_by_label("What should happen?")).to_have_value("it floats")
    expect(page.get_by_label("Blend with a second effect")).not_to_be_checked()
    page.locator("#chips").get_by_text("(25%)").click()
    expect(page.get_by_label("Share of the second effect")).to_have_value("0.25")
    expect(page.get_by_label("The second effect", exact=True)).to_have_value("it floats")


@pytest.mark.parametrize("under_way", [True, False])
def test_cancelling(serving: Serving, opened: Opened, under_way: bool) -> None:
    service = serving(worker={"step_s": 1})
    if not under_way:
        service.worker.go.clear()
    page = opened(service)
    ask(page)
    expect(status(page, "effect")).to_have_text(re.compile("^Rendering" if under_way else "^Queued"))
    page.get_by_role("button", name="Cancel").click()
    for slot in ("base", "effect"):
        expect(status(page, slot)).to_have_text("Cancelled")
    assert [job.status for job in service.services.jobs.page("local").jobs] == ["cancelled"] * 2
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    service.worker.step_s = 0.03
    service.worker.go.set()
    page.get_by_role("button", name="Make it").click()
    finished(page)


def test_without_events_the_page_asks_again(serving: Serving, opened: Opened) -> None:
    page = opened(serving(), errors="ERR_FAILED")
    page.route("**/events", lambda route: route.abort())
    ask(page)
    finished(page)


def test_over_several_replicas(serving: Serving, opened: Opened) -> None:
    service = serving(worker={"step_s": 0.05}, replicas=2)
    page = opened(service)
    ask(page)
    finished(page)
    assert min(service.served) > 3
