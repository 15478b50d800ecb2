"""Fidelity to the world's true effect: it is drawn on the same scene, so no judge is needed.

The same number as `p2e.world.evaluate` measures on a clip before it is coded; what H.264 takes away is in this one. Of
the truth itself it takes 0.003 (red_mood) to 0.038 (levitation) at 96 x 96, where colour has half the pixels, and
0.001 to 0.002 of a clip that is written twice as large, which is shrunk again here.
"""

import functools
import re
from typing import Any

import torch
from torch import Tensor

from eval.metrics.base import Context, Unscorable
from p2e.config import Settings
from p2e.errors import InputError
from p2e.render.video import Clip
from p2e.world.oracle import fidelity

__all__ = ["Oracle", "true_clip"]


class Oracle:
    """1 - |clip - truth|^2 / |still - truth|^2: 1 is the true effect, 0 a picture that stands still."""

    name, recipe = "oracle", "oracle/1"

    def __init__(self, settings: Settings, device: str) -> None:
        pass

    def score(self, clip: Clip, context: Context) -> tuple[float, dict[str, Any]]:
        found = re.fullmatch(r"world:([0-9]{1,4})", context.scene)
        if found is None:
            raise Unscorable("not_the_world", "the oracle knows the world's scenes alone")
        truth = true_clip(context.effect, int(found[1]))
        video, scale = shrunk(torch.from_numpy(clip.frames).permute(0, 3, 1, 2), truth.shape[-1])
        if video.shape != truth.shape:
            raise Unscorable("wrong_size", f"the clip is {tuple(video.shape)}, the truth {tuple(truth.shape)}")
        value = float(fidelity(video[None], truth[None], truth[None, 0])[0])
        if value != value:
            raise Unscorable("nothing_happens", f"{context.effect} changes nothing in {context.scene}")
        return value, {"scale": scale}


def shrunk(video: Tensor, width: int) -> tuple[Tensor, int]:
    """Frames [F, 3, H, W] that were enlarged by a whole factor, as they were before -> them, and the factor; others
    are left as they are."""
    scale, rest = divmod(video.shape[-1], width)
    if scale < 2 or rest or video.shape[-2] % scale:
        return video, 1
    return torch.nn.functional.avg_pool2d(video.float(), scale).round().byte(), scale


@functools.lru_cache(maxsize=256)
def true_clip(effect: str, scene: int) -> Tensor:
    """The effect at its ordinary strength on an evaluation scene, uint8 [F, 3, H, W].

    Raises:
        Unscorable: the world has no such effect or scene.
    """
    from p2e.world.draw import draw_clips
    from p2e.world.effects import effect_index, sample_params
    from p2e.world.scenes import evaluation_scenes
    from p2e.world.sprites import load_atlas

    scenes = evaluation_scenes()
    try:
        index = effect_index(effect)
    except InputError:
        raise Unscorable("not_the_world", f"the world has no effect {effect}") from None
    if scene >= len(scenes):
        raise Unscorable("not_the_world", f"the world has scenes 0 to {len(scenes) - 1}")
    device = torch.device("cpu")
    middle = sample_params(index, 1, None, device, variation=0)
    return draw_clips(scenes.select(slice(scene, scene + 1)), middle, load_atlas(device))[0]
