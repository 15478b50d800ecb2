"""Denoising many clips at once, each with its own first frame and text.

diffusers' pipeline takes one image a call; measuring a hundred LoRAs on dozens of scenes wants a batch. The steps are
the pipeline's own: the same scheduler object, conditioning and velocity, without guidance.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from p2e.adapt.flow import conditioned

__all__ = ["sample_latents"]


@torch.no_grad()
def sample_latents(
    transformer: Any, scheduler: Any, condition: Tensor, text: Tensor, noise: Tensor, steps: int
) -> Tensor:
    """Normalised latents [B, Z, f + 1, h, w] after `steps` steps from `noise`.

    Args:
        scheduler: a diffusers flow scheduler; a copy of it is stepped.
        condition: first-frame condition latents, of the shape of `noise`.
        text: token states [B, T, D].
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps, device=noise.device)
    latents = noise.float()
    for t in scheduler.timesteps:
        velocity = transformer(
            hidden_states=conditioned(latents, condition.float()), timestep=t.expand(len(latents)).float(),
            encoder_hidden_states=text, return_dict=False,
        )[0]  # fmt: skip
        latents = scheduler.step(velocity.float(), t, latents, return_dict=False)[0]
    return latents
