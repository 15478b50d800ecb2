"""Changes to the prompts of a step: noise, dropped tokens, mixed paraphrases, blends of two effects.

Every random number is a hash of a key that the step's row holds, computed on the device by integer arithmetic. So a
resumed run draws what the whole one would have drawn, on any device, and a CUDA graph that replays the step draws
anew with each row.

Shapes: E effects a step, T tokens, D width of the token states.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from p2e.config import AugmentConfig

__all__ = ["Augmented", "augmented", "normal", "uniform"]

DROP, NOISE, MIX, SHARE = range(1, 5)  # streams of random numbers, apart from each other


class Augmented(NamedTuple):
    """Text [E, T, D], mask [E, T], and share [E] of the next effect's update in each effect's target; None where the
    configuration blends nothing."""

    text: Tensor
    mask: Tensor
    share: Tensor | None


def _mixed(x: Tensor) -> Tensor:
    """The finaliser of the SplitMix64 generator, on int64 tensors; products wrap, shifts are logical."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def uniform(key: Tensor, count: int, stream: int) -> Tensor:
    """[E, count] float32, uniform on (0, 1): a function of key [E] int64, position and stream alone."""
    position = torch.arange(1, count + 1, device=key.device)
    x = _mixed(_mixed(key * 64 + stream)[:, None] + position * -0x61C8864680B583EB)
    return (((x >> 40) & 0xFFFFFF).float() + 0.5) / (1 << 24)


def normal(key: Tensor, count: int, stream: int) -> Tensor:
    """[E, count] float32, standard normal (Box and Muller)."""
    half = (count + 1) // 2
    first, second = uniform(key, 2 * half, stream).chunk(2, dim=1)
    radius, angle = (-2 * first.log()).sqrt(), 2 * math.pi * second
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]


def augmented(text: Tensor, mask: Tensor, other: Tensor, key: Tensor, config: AugmentConfig) -> Augmented:
    """Text as training sees it, of the shape that it came in.

    Args:
        text, mask: of a prompt of each effect, [E, T, D] and [E, T].
        other: text of another prompt of each effect, [E, T, D].
        key: names the random numbers of each effect in this step, [E] int64.
    """
    effects, tokens, width = text.shape
    share = None
    if config.mix:
        draws = uniform(key, 2, MIX)
        amount = torch.where(draws[:, 0] < config.mix, draws[:, 1], 0.0)
        text = torch.lerp(text, other, amount[:, None, None])
    if config.blend:
        # The effects of a step are in shuffled order, so its first ones and their successors are any pairs.
        blended = torch.arange(effects, device=key.device) < round(config.blend * effects)
        share = torch.where(blended, uniform(key, 1, SHARE)[:, 0] / 2, 0.0)
        text = torch.lerp(text, text.roll(-1, 0), share[:, None, None])
    if config.noise:
        size = text.square().mean(-1, keepdim=True).sqrt() * config.noise
        text = text + size * normal(key, tokens * width, NOISE).view(effects, tokens, width)
    if config.token_dropout:
        draws = torch.where(mask, uniform(key, tokens, DROP), 0.0)
        mask = mask & ((draws >= config.token_dropout) | (draws == draws.amax(1, keepdim=True)))
    return Augmented(text, mask, share)
