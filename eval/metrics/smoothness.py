"""Motion smoothness by VBench's formula (Huang et al. 2024): how well every other frame is told by its neighbours.

Of frames 0, 2, 4 ... an interpolation model makes those between; truncated to whole numbers they are held to the true
ones: (255 - mean absolute difference) / 255, in percent. VBench's model is AMT-S, whose licence forbids commercial use,
so none comes with the project: a plug-in is a callable "package.module:name", called once with the device, which
returns a function of two frames, float [3, H, W] in 0..1, that gives the middle one. A pair at a time, so that memory
does not grow with the clip. Without a model the mean of the two frames stands in, under another name.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eval.metrics.base import Context, Unscorable
from p2e.config import Settings
from p2e.errors import ConfigError
from p2e.render.video import Clip

__all__ = ["BlendSmoothness", "MotionSmoothness", "MotionSmoothnessSettings", "Smoothness"]

Interpolate = Callable[[Tensor, Tensor], Tensor]


class Smoothness:
    """The formula over an interpolation model."""

    def __init__(self, name: str, recipe: str, interpolate: Interpolate, device: str) -> None:
        self.name, self.recipe, self.interpolate, self.device = name, recipe, interpolate, device

    @torch.inference_mode()
    def score(self, clip: Clip, context: Context) -> tuple[float, dict[str, Any]]:
        if len(clip) < 3:
            raise Unscorable("too_few_frames", f"{len(clip)} frames; a middle one needs 3")
        differences = []
        for middle in range(1, len(clip) - 1, 2):
            before, after = (self._frame(clip, index) for index in (middle - 1, middle + 1))
            made = (self.interpolate(before, after) * 255).clamp(0, 255).to(torch.uint8)
            true = torch.from_numpy(clip.frames[middle]).permute(2, 0, 1).to(made.device)
            if made.shape != true.shape:
                raise Unscorable("wrong_plug_in", f"the plug-in gives {tuple(made.shape)} for {tuple(true.shape)}")
            differences.append((made.int() - true.int()).abs().double().mean())
        mean = float(torch.stack(differences).mean())
        return 100 * (255 - mean) / 255, {"frames": len(clip), "pairs": len(differences)}

    def _frame(self, clip: Clip, index: int) -> Tensor:
        return torch.from_numpy(clip.frames[index]).permute(2, 0, 1).to(self.device).float() / 255


class MotionSmoothnessSettings(Settings):
    """Settings.

    Attributes:
        interpolator: plug-in, "package.module:name".
        version: of the plug-in and its weights; it stands in the recipe.
    """

    interpolator: str
    version: str


class MotionSmoothness(Smoothness):
    """With the user's model."""

    def __init__(self, settings: MotionSmoothnessSettings, device: str) -> None:
        module, _, attribute = settings.interpolator.partition(":")
        try:
            interpolate = getattr(importlib.import_module(module), attribute)(device)
        except Exception as error:  # whatever somebody else's code raises
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ConfigError(f"interpolator {settings.interpolator}: cannot be used ({reason})") from None
        recipe = f"motion_smoothness/1 {settings.interpolator} {settings.version}"
        super().__init__("motion_smoothness", recipe, interpolate, device)


class BlendSmoothness(Smoothness):
    """With the mean of two frames."""

    def __init__(self, settings: Settings, device: str) -> None:
        super().__init__("blend_smoothness", "blend_smoothness/1", lambda a, b: (a + b) / 2, device)
