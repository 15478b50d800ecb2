"""Which frames of a clip are looked at."""

from collections.abc import Sequence

import numpy as np

__all__ = ["FRAMES", "uniform_frames"]

FRAMES = 16


def uniform_frames(frames: int, count: int = FRAMES) -> Sequence[int]:
    """`count` indices from the first frame to the last, round(linspace(0, frames - 1, count)); a clip of fewer frames
    has some of them more than once."""
    return [int(index) for index in np.linspace(0, frames - 1, count).round()]
