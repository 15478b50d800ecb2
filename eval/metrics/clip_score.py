"""CLIP score: how near frames are to the effect's prompt (Hessel et al. 2021, without its factor 2.5 and clamp)."""

from typing import Any

import torch
from PIL import Image
from pydantic import Field

from eval.metrics.base import Context
from eval.metrics.clip_model import MEAN, STD, ClipModel
from eval.metrics.sampling import FRAMES, uniform_frames
from p2e.config import Settings
from p2e.render.video import Clip

__all__ = ["ClipScore", "ClipScoreSettings"]


class ClipScoreSettings(Settings):
    """Settings.

    Attributes:
        weights: safetensors of the model.
        model: open_clip's name; figures of others do not compare.
        frames: looked at, uniformly.
    """

    weights: str
    model: str = "ViT-B-16-quickgelu"
    frames: int = Field(default=FRAMES, ge=1)


class ClipScore:
    """mean over frames of 100 cos(image, text): frames round(linspace(0, F - 1, 16)), each brought to 224 x 224 by PIL
    (bicubic with antialiasing on the short side, then the centre), float32, no clamp at 0, no scale of logits."""

    name = "clip_score"

    def __init__(self, settings: ClipScoreSettings, device: str) -> None:
        from open_clip import image_transform

        self.settings, self.clip = settings, ClipModel(settings.model, settings.weights, device)
        self.recipe = f"clip_score/1 {settings.model} {self.clip.digest[:16]} frames={settings.frames}"
        self.prepare: Any = image_transform(
            self.clip.size, is_train=False, mean=MEAN, std=STD, resize_mode="shortest", interpolation="bicubic"
        )

    def score(self, clip: Clip, context: Context) -> tuple[float, dict[str, Any]]:
        chosen = uniform_frames(len(clip), self.settings.frames)
        pixels = torch.stack([self.prepare(Image.fromarray(clip.frames[index])) for index in chosen])
        cosines = self.clip.images(pixels) @ self.clip.text(context.prompt)
        tokens, cut = self.clip.tokens(context.prompt)
        details = {"frames": len(clip), "text": context.prompt, "tokens": tokens, "text_truncated": cut}
        return float(100 * cosines.double().mean()), details
