"""Screenshots of the page with a finished effect: `python tests/serve/screenshot.py [--url URL]` in the checkout.

With a URL it asks the endpoint there, which should serve the world. Without one it plays an endpoint whose renderer
draws true clips by rule: good enough to work on the page, and not what a model makes.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from browser import chromium
from gateways import services
from PIL import Image
from playwright.sync_api import Page
from running import running

from p2e.config import RenderConfig
from p2e.render.video import Clip
from p2e.world.draw import draw_clips
from p2e.world.effects import EFFECTS, sample_params
from p2e.world.scenes import evaluation_scenes
from p2e.world.sprites import load_atlas
from serve.job import Job
from serve.keys import Keys
from serve.services import Services

OUT = Path(__file__).parents[2] / "serve" / "page" / "screenshot.png"
RENDER = RenderConfig(height=96, width=96, frames=17, steps=10)
EFFECT = "purple_zoom_in"
VIEWS = {
    "": ((1280, 900), "light", 1), "-dark": ((1280, 900), "dark", 1), "-phone": ((390, 844), "light", 2),
    "-phone-dark": ((390, 844), "dark", 2),
}  # fmt: skip


class Oracle:
    """Draws what a job should become: its scene is the one whose picture it has, its effect the one with its words."""

    def __init__(self, made: Services) -> None:
        self.made = made
        self.scenes, self.atlas = evaluation_scenes(), load_atlas()
        self.stills = draw_clips(self.scenes, None, self.atlas, frames=1)[:, 0].permute(0, 2, 3, 1).numpy()

    def __call__(self, job: Job) -> Clip:
        with self.made.artefacts.open(job.request["picture"]) as file:
            picture = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")).astype(int)
        number = int(np.abs(self.stills.astype(int) - picture).mean((1, 2, 3)).argmin())
        params = None
        if job.effect_id is not None:
            words = self.made.effects.get(job.effect_id, job.owner).source.get("prompt")
            spec = next((spec for spec in EFFECTS if words in spec.prompts), EFFECTS[0])
            params = sample_params(spec, 1, None, variation=0)
        clip = draw_clips(self.scenes.select(torch.tensor([number])), params, self.atlas)[0]
        return Clip(clip.permute(0, 2, 3, 1).contiguous().numpy())


@contextlib.contextmanager
def played() -> Iterator[str]:
    """The address of an endpoint that is played."""
    with tempfile.TemporaryDirectory() as folder:
        made = services(Path(folder), time.time)  # pyright: ignore[reportArgumentType]
        made = replace(made, settings=made.settings.model_copy(update={"render": RENDER}), keys=Keys())
        with running(made, draw=Oracle(made)) as found:
            yield found.address


def finish(page: Page, url: str, effect: str) -> None:
    """Opens the page and makes an effect there; stops in the middle of its video."""
    page.goto(url)
    page.locator("#find").fill(effect.replace("_", " "))
    page.locator(".card").first.click()
    page.locator("#find").fill("")
    page.wait_for_timeout(1000)
    page.locator("#make").click()
    both, refusal = page.locator(".screen video:visible").nth(1), page.locator("#message:not(.wait):visible")
    both.or_(refusal).first.wait_for(timeout=300_000)
    if refusal.count():
        sys.exit(f"the endpoint refuses: {refusal.inner_text()}")
    page.wait_for_timeout(1500)
    page.locator("#pause").click()
    page.evaluate("document.querySelectorAll('.screen video').forEach((video) => { video.currentTime = 1.5; })")
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    page.wait_for_timeout(3000)


def shoot(url: str, out: Path, views: list[str], effect: str) -> None:
    with chromium() as browser:
        for view in views:
            (width, height), scheme, scale = VIEWS[view]
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=scale,  # pyright: ignore[reportArgumentType]
            )  # fmt: skip
            page = context.new_page()
            finish(page, url, effect)
            path = out.with_stem(out.stem + view)
            page.screenshot(path=path, full_page=bool(view) and "phone" in view)
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
            context.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="an endpoint that runs")
    parser.add_argument("--effect", default=EFFECT, help="one of the world's, by its name")
    parser.add_argument("-o", "--output", type=Path, default=OUT)
    parser.add_argument("--all", action="store_true", help="dark and on a phone, too")
    arguments = parser.parse_args()
    with contextlib.nullcontext(arguments.url) if arguments.url else played() as url:
        shoot(url, arguments.output, list(VIEWS) if arguments.all else [""], arguments.effect)
    return 0


if __name__ == "__main__":
    sys.exit(main())
