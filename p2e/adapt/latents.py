"""From clips to what a transformer learns from: normalised latents, and the latents of the first frame alone.

Shapes: P clips, F frames, H x W pixels; Z channels, f + 1 latent frames, h x w latent cells.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["encode_latents", "encode_pairs", "latent_statistics", "normalise", "to_model_range"]


def to_model_range(clips: Tensor) -> Tensor:
    """uint8 [P, F, 3, H, W] -> float [P, 3, F, H, W] in -1..1."""
    return clips.transpose(1, 2).float().div_(127.5).sub_(1)


def latent_statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel, [1, Z, 1, 1, 1], on the device and in the type of `like`."""
    mean, std = like.new_tensor(vae.config.latents_mean), like.new_tensor(vae.config.latents_std)
    return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)


def normalise(vae: Any, latents: Tensor) -> Tensor:
    """(latents - mean) / std per channel, as the pipeline does before denoising. [P, Z, f + 1, h, w]."""
    mean, std = latent_statistics(vae, latents)
    return (latents - mean) / std


@torch.no_grad()
def encode_pairs(
    vae: Any, clips: Tensor, encode: Callable[[Tensor], Tensor], batch: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Normalised latents and first-frame condition latents [P, Z, f + 1, h, w] of uint8 clips [P, F, 3, H, W].

    The condition is the clip "frame 0, then mid grey" through the same encoder, as the pipeline makes it.

    Args:
        encode: clips in -1..1 -> the mean of their latents, `batch` clips at a time.
        dtype: what the latents are kept in.
    """
    latents, conditions = [], []
    for part in clips.split(batch):
        x = to_model_range(part.to(vae.device))
        still = torch.zeros_like(x)
        still[:, :, :1] = x[:, :, :1]
        for source, target in ((x, latents), (still, conditions)):
            target.append(normalise(vae, encode(source).float()).to(dtype))
    return torch.cat(latents), torch.cat(conditions)


def encode_latents(vae: Any, clips: Tensor, batch: int = 8) -> tuple[Tensor, Tensor]:
    """`encode_pairs` by the autoencoder's own `encode`, which takes clips of any length."""
    return encode_pairs(vae, clips, lambda x: vae.encode(x).latent_dist.mode(), batch)
