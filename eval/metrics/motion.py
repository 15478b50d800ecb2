"""How much moves in a clip, so that one that stands still cannot win by being smooth."""

from typing import Any

import numpy as np

from eval.metrics.base import Context, Unscorable
from p2e.config import Settings
from p2e.render.video import Clip

__all__ = ["MeanMotion", "MovingShare"]

VISIBLE = 16  # of 255: more than coding makes of a still picture


class MeanMotion:
    """Mean absolute difference of neighbouring frames over pixels, channels and pairs, in percent of the range."""

    name, recipe = "mean_motion", "mean_motion/1"

    def __init__(self, settings: Settings, device: str) -> None:
        pass

    def score(self, clip: Clip, context: Context) -> tuple[float, dict[str, Any]]:
        check_frames(clip)
        sums = [np.abs(b.astype(np.int16) - a).mean(dtype=np.float64) for a, b in neighbours(clip)]
        return float(100 * np.mean(sums) / 255), {"frames": len(clip), "fps": clip.fps}


class MovingShare:
    """Share of pixels that differ from the first frame by more than 16 of 255 in a channel, in the frame in which most
    do, in percent."""

    name, recipe = "moving_share", f"moving_share/1 over={VISIBLE}"

    def __init__(self, settings: Settings, device: str) -> None:
        pass

    def score(self, clip: Clip, context: Context) -> tuple[float, dict[str, Any]]:
        check_frames(clip)
        first = clip.frames[0].astype(np.int16)
        shares = [(np.abs(frame - first).max(-1) > VISIBLE).mean() for frame in clip.frames[1:]]
        return float(100 * max(shares)), {"frames": len(clip)}


def neighbours(clip: Clip) -> Any:
    return zip(clip.frames[:-1], clip.frames[1:], strict=True)


def check_frames(clip: Clip) -> None:
    if len(clip) < 2:
        raise Unscorable("too_few_frames", "1 frame; motion needs 2")
