"""The flow-matching objective of Wan-like image-to-video models, and their first-frame conditioning.

    x_t = (1 - t) x_0 + t e,   target v = e - x_0,   t in 0..1, fed to the transformer as 1000 t

Conditioning as the pipeline does it: the clip "first frame, then mid grey" goes through the VAE, and stands beside
the noisy latents with a mask that is 1 on the first latent frame.

Shapes: B clips, Z latent channels, f + 1 latent frames, h x w latent cells, T text tokens, D their width.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Clips", "conditioned", "first_frame_mask", "flow_loss", "sample_times"]

MASK_CHANNELS = 4  # one for each frame that a latent frame stands for


class Clips(NamedTuple):
    """What the base sees of a step: latents, condition and noise [B, Z, f + 1, h, w], normalised, token states
    [B, T, D] of the prompts, times [B] in 0..1; the clips of one effect stand side by side."""

    latents: Tensor
    condition: Tensor
    text: Tensor
    times: Tensor
    noise: Tensor


def first_frame_mask(latents: Tensor) -> Tensor:
    """[B, 4, f + 1, h, w]: 1 on the first latent frame, 0 after it."""
    batch, _, frames, height, width = latents.shape
    mask = latents.new_zeros(batch, MASK_CHANNELS, frames, height, width)
    mask[:, :, 0] = 1
    return mask


def conditioned(noisy: Tensor, condition: Tensor) -> Tensor:
    """The transformer's input: noisy latents, mask and condition latents along the channels."""
    return torch.cat([noisy, first_frame_mask(condition), condition], dim=1)


def sample_times(
    count: int, generator: torch.Generator, device: torch.device | str, *, sampling: str = "logit_normal",
    shift: float = 1.0, scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """Times in 0..1, [count]: logit-normal or uniform, moved towards noise by `shift` as the scheduler's sigmas are."""
    if sampling == "uniform":
        t = torch.rand(count, generator=generator, device=device)
    else:
        t = torch.sigmoid(scale * torch.randn(count, generator=generator, device=device))
    return shift * t / (1 + (shift - 1) * t)


def flow_loss(
    transformer: Any, latents: Tensor, condition: Tensor, text: Tensor, times: Tensor, noise: Tensor
) -> Tensor:
    """Mean squared error of the velocity of every clip, [B], in float32.

    Args:
        transformer: called as diffusers' WanTransformer3DModel is.
        latents, condition, noise: [B, Z, f + 1, h, w], normalised.
        text: token states [B, T, D].
        times: [B] in 0..1.
    """
    t = times.view(-1, 1, 1, 1, 1)
    noisy = (1 - t) * latents + t * noise
    velocity = transformer(
        hidden_states=conditioned(noisy, condition), timestep=1000 * times, encoder_hidden_states=text,
        return_dict=False,
    )[0]  # fmt: skip
    return F.mse_loss(velocity.float(), noise - latents, reduction="none").flatten(1).mean(1)
