"""A user's metrics, as a sweep's workers import them."""

from typing import Any

from eval.metrics import Context
from p2e.render.video import Clip

__all__ = ["Brightness", "NoMetric"]


class Brightness:
    """Mean of all pixels, 0 to 255; it breaks down on one effect."""

    def __init__(self, breaks_on: str = "") -> None:
        self.name, self.recipe, self.breaks_on = "brightness", f"brightness/1 {breaks_on}", breaks_on

    def score(self, clip: Clip, context: Context) -> tuple[float, dict[str, Any]]:
        if context.effect == self.breaks_on:
            raise ZeroDivisionError("this one is too dark")
        return float(clip.frames.mean()), {"frames": len(clip)}


class NoMetric:
    """It has no recipe."""

    name = "nothing"
