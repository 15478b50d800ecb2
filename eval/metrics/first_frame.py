"""Whether a clip begins with the picture it was given."""

import math
from typing import Any

import numpy as np

from eval.metrics.base import Context, Unscorable
from p2e.config import Settings
from p2e.render.image import fit_image, load_image
from p2e.render.video import Clip

__all__ = ["FirstFrame"]

MOST = 60.0  # of frames that are equal, and so that a mean is finite


class FirstFrame:
    """PSNR in dB of the first frame to the picture, fitted to the clip's size as the renderer does; 60 at most."""

    name, recipe = "first_frame", "first_frame/1"

    def __init__(self, settings: Settings, device: str) -> None:
        pass

    def score(self, clip: Clip, context: Context) -> tuple[float, dict[str, Any]]:
        if not context.image:
            raise Unscorable("no_image", "the clip's picture is not known")
        picture = np.asarray(fit_image(load_image(context.image), *clip.size), np.float64)
        error = float(np.square(clip.frames[0] - picture).mean())
        return min(MOST, 10 * math.log10(255**2 / error)) if error else MOST, {"size": list(clip.size)}
