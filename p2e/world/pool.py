"""Clips drawn in bulk: generic motion for pre-training, effects for measuring.

Shapes: P clips, F frames, H x W pixels; clips are uint8 [P, F, 3, H, W].
"""

import torch
from torch import Tensor

from p2e.world.draw import draw_clips
from p2e.world.effects import EFFECTS, sample_params
from p2e.world.motion import sample_motion
from p2e.world.scenes import sample_scenes
from p2e.world.sprites import load_atlas

__all__ = ["draw_effect_clips", "draw_pool"]

PART = 512  # clips drawn at once


def draw_pool(count: int, generator: torch.Generator, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Clips of generic motion, and the index of each one's caption in `motion.CAPTIONS`: [P]."""
    atlas, clips, captions = load_atlas(device), [], []
    for start in range(0, count, PART):
        part = min(PART, count - start)
        scenes = sample_scenes(part, generator, device)
        params, caption = sample_motion(part, generator, device, scenes)
        clips.append(draw_clips(scenes, params, atlas))
        captions.append(caption)
    return torch.cat(clips), torch.cat(captions)


def draw_effect_clips(count: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
    """Clips of effects in turn, each on a scene of its own."""
    which = torch.arange(count) % len(EFFECTS)
    scenes = sample_scenes(count, generator, device)
    return draw_clips(scenes, sample_params(which, count, generator, device), load_atlas(device))
