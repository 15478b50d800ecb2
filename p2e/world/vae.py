"""The world's autoencoder: diffusers' AutoencoderKLWan at a small size, and its whole-clip form for training.

diffusers encodes and decodes a clip in chunks of four frames with caches, so that long videos fit; for a short clip
on a GPU that is a loop of small kernels. `encode_clip` and `decode_clip` walk the same modules once over the whole
clip. They give the same result (a test holds it): every causal convolution sees the frames before it either way, the
temporal downsampling keeps frame 0 apart, and the temporal upsampling doubles every latent frame but the first, whose
successor sees zeros before it.

Shapes: B clips, F = 4 f + 1 frames, f + 1 latent frames, H x W pixels, h x w = H/8 x W/8 latent cells, Z channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "WORLD_VAE",
    "build_vae",
    "channels_last",
    "decode_clip",
    "encode_clip",
    "psnr",
]

WORLD_VAE: dict[str, Any] = {
    "base_dim": 32,
    "decoder_base_dim": 32,
    "z_dim": 48,
    "dim_mult": [1, 4, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],  # diffusers' spelling
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "is_residual": True,  # parameter-free shortcuts around every resampling: converges several times faster
    "scale_factor_spatial": 8,
    "scale_factor_temporal": 4,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}


def build_vae(**changes: Any) -> Any:
    """A fresh AutoencoderKLWan at the world's size."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(**{**WORLD_VAE, **changes})


def _per_frame(module: nn.Module, x: Tensor) -> Tensor:
    """Applies a 2D module to every frame of [B, C, F, H, W]."""
    batch, _, frames = x.shape[:3]
    y = module(x.transpose(1, 2).flatten(0, 1))
    return y.unflatten(0, (batch, frames)).transpose(1, 2)


def _resample(layer: Any, x: Tensor) -> Tensor:
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        later = layer.time_conv(x[:, :, 1:])
        later = later.unflatten(1, (2, -1)).permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
        x = torch.cat([x[:, :, :1], later], dim=2)
    x = _per_frame(layer.resample, x)
    if layer.mode == "downsample3d" and x.shape[2] > 1:
        x = torch.cat([x[:, :, :1], layer.time_conv(x)], dim=2)
    return x


def _average_down(shortcut: Any, x: Tensor) -> Tensor:
    """AvgDown3D over a whole clip: frame 0 is a chunk of its own, padded in front with zeros."""
    if shortcut.factor_t == 1 or x.shape[2] == 1:
        return shortcut(x)
    return torch.cat([shortcut(x[:, :, :1]), shortcut(x[:, :, 1:])], dim=2)


def _down_block(block: Any, x: Tensor) -> Tensor:
    y = x
    for resnet in block.resnets:
        y = resnet(y)
    if block.downsampler is not None:
        y = _resample(block.downsampler, y)
    return y + _average_down(block.avg_shortcut, x)


def _up_block(block: Any, x: Tensor) -> Tensor:
    y = x
    for resnet in block.resnets:
        y = resnet(y)
    if block.upsampler is not None:
        y = _resample(block.upsampler, y)
    if block.avg_shortcut is not None:
        y = y + block.avg_shortcut(x, first_chunk=True)  # drops the first frame's duplicate over the whole clip
    return y


def encode_clip(vae: Any, clip: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of the latents, [B, Z, f + 1, h, w] each, of a clip [B, 3, F, H, W] in -1..1."""
    p = vae.config.patch_size
    # channel order of diffusers' patchify: (channel, column within patch, row within patch)
    x = clip.unflatten(4, (-1, p)).unflatten(3, (-1, p)).permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)
    encoder = vae.encoder
    x = encoder.conv_in(x)
    for block in encoder.down_blocks:
        x = _down_block(block, x)
    x = encoder.mid_block(x)
    x = encoder.conv_out(encoder.nonlinearity(encoder.norm_out(x)))
    mean, log_variance = vae.quant_conv(x).chunk(2, dim=1)
    return mean, log_variance.clamp(-30.0, 20.0)


def decode_clip(vae: Any, latents: Tensor) -> Tensor:
    """The clip [B, 3, F, H, W] of latents [B, Z, f + 1, h, w]; not clamped, for a loss wants the gradient outside."""
    decoder = vae.decoder
    x = decoder.conv_in(vae.post_quant_conv(latents))
    x = decoder.mid_block(x)
    for block in decoder.up_blocks:
        x = _up_block(block, x)
    x = decoder.conv_out(decoder.nonlinearity(decoder.norm_out(x)))
    p = vae.config.patch_size
    return x.unflatten(1, (-1, p, p)).permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)


def psnr(clip: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each clip of a batch in -1..1, over all frames: [B]."""
    return 10 * torch.log10(4.0 / F.mse_loss(clip.clamp(-1, 1), truth, reduction="none").flatten(1).mean(1))


def channels_last(module: nn.Module) -> None:
    """Lays convolution weights out with channels last, which Hopper's kernels want; values and shapes are unchanged."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])
