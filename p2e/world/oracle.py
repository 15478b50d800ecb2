"""How near a video comes to the true effect on the same first frame: exact, for the world's effects are computed."""

import torch
from torch import Tensor

from p2e.errors import InputError

__all__ = ["fidelity"]


def fidelity(video: Tensor, truth: Tensor, still: Tensor, clamp: bool = False) -> Tensor:
    """fidelity = 1 - |video - truth|^2 / |still - truth|^2 for each clip.

    1 is the truth, 0 is as good as if nothing happened; worse than that is negative, without a lower bound.

    Args:
        video, truth: [B, F, 3, H, W], uint8 (0..255) or float in 0..1, the two alike or not.
        still: the clip without the effect: its first frame [B, 3, H, W], which then stands still, or the whole clip.
        clamp: bounds the result to -1..1, so that a mean over clips is not ruled by one failure.

    Returns:
        float64 [B]; NaN where the effect changes nothing, for there is nothing to be true to.

    Raises:
        InputError: the shapes do not belong together.
    """
    if still.ndim == 4:
        still = still[:, None].expand_as(truth)
    if video.shape != truth.shape or still.shape != truth.shape:
        raise InputError(
            f"video {tuple(video.shape)}, truth {tuple(truth.shape)} and still {tuple(still.shape)} do not have one "
            "shape; give the same clips, frames and pixels"
        )
    error = (_unit(video) - _unit(truth)).square().flatten(1).mean(1, dtype=torch.float64)
    change = (_unit(still) - _unit(truth)).square().flatten(1).mean(1, dtype=torch.float64)
    result = torch.where(change > 0, 1 - error / change, torch.nan)
    return result.clamp(-1, 1) if clamp else result


def _unit(video: Tensor) -> Tensor:
    return video.float() / 255 if video.dtype == torch.uint8 else video.float()
