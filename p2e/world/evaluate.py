"""Oracle fidelity of LoRAs in the world: render the evaluation scenes and compare with the true effect.

Each effect is judged on the same scenes and noise; the truth comes from the same scene by drawing, so no judge is
needed. The decoder's cap, the fidelity of the truth encoded and decoded, stands beside every figure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from p2e.adapt.grouped import GroupedLoras
from p2e.adapt.latents import latent_statistics
from p2e.adapt.sample import sample_latents
from p2e.bases.base import Base
from p2e.lora.lora import Lora
from p2e.world.draw import draw_clips
from p2e.world.effects import sample_params
from p2e.world.oracle import fidelity
from p2e.world.scenes import evaluation_scenes
from p2e.world.sprites import load_atlas
from p2e.world.train_base import encode_clips
from p2e.world.vae import decode_clip

__all__ = ["EvaluationSet", "draw_evaluation", "measure"]


@dataclass(frozen=True)
class EvaluationSet:
    """Truth and starting points of E effects on S scenes.

    Attributes:
        truth: uint8 [E, S, F, 3, H, W]; latents, condition: [E, S, Z, f + 1, h, w].
    """

    truth: Tensor
    latents: Tensor
    condition: Tensor


def draw_evaluation(indices: Sequence[int], scenes: int, vae: Any, device: torch.device) -> EvaluationSet:
    """The first `scenes` of the evaluation scenes under each effect of EFFECTS at `indices`."""
    atlas, chosen = load_atlas(device), evaluation_scenes(device).select(slice(0, scenes))
    parts = []
    for index in indices:
        middle = sample_params(index, scenes, None, device, variation=0)  # the effect at its ordinary strength
        truth = draw_clips(chosen, middle, atlas)
        parts.append((truth, *encode_clips(vae, truth)))
    return EvaluationSet(*(torch.stack(column) for column in zip(*parts, strict=True)))


@torch.no_grad()
def decode_pixels(vae: Any, latents: Tensor, batch: int = 64) -> Tensor:
    """uint8 clips [B, F, 3, H, W] of normalised latents [B, Z, f + 1, h, w]."""
    mean, std = latent_statistics(vae, latents.float())
    clips = [decode_clip(vae, part.float() * std + mean).clamp(-1, 1) for part in latents.split(batch)]
    return ((torch.cat(clips).transpose(1, 2) + 1) * 127.5).round().byte()


@torch.no_grad()
def measure(
    data: EvaluationSet, text: Tensor, loras: Sequence[Lora] | None, base: Base, transformer: Any, vae: Any,
    scheduler: Any, *, steps: int = 10, seed: int = 0, groups: int = 16,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Fidelity of every clip [E, S], and the clips uint8 [E, S, F, 3, H, W].

    Args:
        text: token states of the prompt of each effect, [E, T, D].
        loras: one an effect, or None for the base alone.
        groups: effects rendered at once.
    """
    device, (effects, scenes) = data.truth.device, data.truth.shape[:2]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(data.latents.shape[1:], generator=generator).to(device)  # the same for every effect
    scores, clips = [], []
    cuda = device.type == "cuda"
    for start in range(0, effects, groups):
        part = slice(start, min(start + groups, effects))
        count = part.stop - part.start
        condition = data.condition[part].flatten(0, 1)
        words = text[part].repeat_interleave(scenes, 0).to(device).float()
        start_noise = noise.repeat(count, 1, 1, 1, 1)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            if loras is None:
                latents = sample_latents(transformer, scheduler, condition, words, start_noise, steps)
            else:
                chosen = loras[part]
                grouped = GroupedLoras(base, count, max(x.rank for x in chosen), device=device, init=chosen)
                with grouped.attached(transformer):
                    latents = sample_latents(transformer, scheduler, condition, words, start_noise, steps)
            video = decode_pixels(vae, latents).view(data.truth[part].shape)
        scores.append(oracle(video, data.truth[part]))
        clips.append(video)
    return torch.cat(scores), torch.cat(clips)


def oracle(video: Tensor, truth: Tensor) -> Tensor:
    """Fidelity of every clip [E, S] of uint8 [E, S, F, 3, H, W] against the truth, whose first frame is the start."""
    flat, true = video.flatten(0, 1), truth.flatten(0, 1)
    return fidelity(flat, true, true[:, 0]).view(video.shape[:2])


@torch.no_grad()
def decoder_cap(data: EvaluationSet, vae: Any) -> Tensor:
    """Fidelity of the truth encoded and decoded, [E, S]: no render can be expected to pass it."""
    return oracle(decode_pixels(vae, data.latents.flatten(0, 1)).view(data.truth.shape), data.truth)
