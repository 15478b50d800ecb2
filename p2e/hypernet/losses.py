"""Equation 13, and the relative error of the update by Gram matrices.

Shapes: S sites of one shape, E effects, r rank. Predictions and targets: A [S, E, r, d_in], B [S, E, d_out, r].
The rank of prediction and target may differ in the update's error, not in equation 13.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from p2e.config import LossConfig

__all__ = [
    "Errors",
    "Losses",
    "blended_errors",
    "combine",
    "factor_error",
    "site_errors",
    "update_inner",
    "update_norms",
]


class Errors(NamedTuple):
    """Per (site, effect), each [S, E]."""

    factor: Tensor
    update: Tensor
    norm_ratio: Tensor


class Losses(NamedTuple):
    """Scalars of a step: what is minimised, then what is reported."""

    loss: Tensor
    factor_error: Tensor
    update_error: Tensor
    norm_ratio: Tensor


def factor_error(predicted: Tensor, target: Tensor, epsilon: float) -> Tensor:
    """||predicted - target||_F^2 / (||target||_F^2 + epsilon) over the last two axes, with both norms per entry.

    Dividing both by the number of entries leaves the ratio of equation 13 as it is and makes epsilon mean the same
    for every width.
    """
    return (predicted - target).square().mean((-1, -2)) / (target.square().mean((-1, -2)) + epsilon)


def update_inner(b1: Tensor, a1: Tensor, b2: Tensor, a2: Tensor) -> Tensor:
    """<B1 A1, B2 A2>_F = tr((B1^T B2)(A2 A1^T)) over the last two axes, from r x r products alone."""
    return ((b1.mT @ b2) * (a1 @ a2.mT)).sum((-1, -2))


def update_norms(a_hat: Tensor, b_hat: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """||B^A^ - BA||_F^2, ||B^A^||_F^2 and ||BA||_F^2, each [...]; never a d_out x d_in product."""
    predicted = update_inner(b_hat, a_hat, b_hat, a_hat)
    target = update_inner(b, a, b, a)
    # A difference of near-equal sums: rounding can take it below zero.
    error = (predicted - 2 * update_inner(b_hat, a_hat, b, a) + target).clamp(min=0)
    return error, predicted, target


def site_errors(a_hat: Tensor, b_hat: Tensor, a: Tensor, b: Tensor, epsilon: float) -> Errors:
    """Errors of every (site, effect), in float32 at least; the inputs of reduced precision are widened first."""
    a_hat, b_hat = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (a_hat, b_hat))
    factor = (factor_error(a_hat, a, epsilon) + factor_error(b_hat, b, epsilon)) / 2
    # The mean square of an entry of BA, at typical factors of mean square 1, is the rank.
    floor = epsilon * a.shape[-1] * b.shape[-2] * a.shape[-2]
    return Errors(factor, *update_errors(a_hat, b_hat, a, b, floor))


def update_errors(a_hat: Tensor, b_hat: Tensor, a: Tensor, b: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Relative squared error of the update, and the ratio of its norm to the target's, each [S, E]."""
    error, predicted, target = update_norms(a_hat, b_hat, a, b)
    return error / (target + floor), (predicted / (target + floor)).clamp(min=1e-12).sqrt()


def blended_errors(
    errors: Errors, a_hat: Tensor, b_hat: Tensor, a: Tensor, b: Tensor, weight: Tensor, share: Tensor, epsilon: float,
    target: Literal["mean", "sum"] = "mean",
) -> tuple[Errors, Tensor]:  # fmt: skip
    """Errors where each effect's target is a blend of its own update and the next effect's.

    "mean" takes (1 - share) of the one and `share` of the other. "sum" takes all of the one and 2 `share` of the other,
    for who asks for two effects in one prompt wants both at full strength, and such a prompt lies half way.

    A blend has no factors to regress, as its canonical ones would need an SVD a step: the error of its update, whose
    target is the two side by side at rank 2 r, takes their place.

    Args:
        errors: of the effects on their own, which those with share 0 keep.
        weight: [S, E]; a blend counts where both LoRAs cover the site.
        share: [E], 0 to 1; for "sum", to a half.

    Returns:
        errors and weights, each [S, E].
    """
    part = share[:, None, None]
    a_both = torch.cat([a, a.roll(-1, 1)], dim=2)
    first, second = (1 - part, part) if target == "mean" else (torch.ones_like(part), 2 * part)
    b_both = torch.cat([b * first, b.roll(-1, 1) * second], dim=3)
    a_hat, b_hat = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (a_hat, b_hat))
    mixed = update_errors(a_hat, b_hat, a_both, b_both, epsilon * a.shape[-1] * b.shape[-2] * a.shape[-2])
    blended = share > 0
    kept = Errors(
        torch.where(blended, mixed[0], errors.factor),
        torch.where(blended, mixed[0], errors.update),
        torch.where(blended, mixed[1], errors.norm_ratio),
    )
    return kept, torch.where(blended, torch.minimum(weight, weight.roll(-1, 1)), weight)


def combine(errors: list[Errors], weights: list[Tensor], config: LossConfig) -> Losses:
    """Weighted means over all sites and effects of all groups, and the objective.

    Args:
        errors: per group of sites of one shape.
        weights: [S, E] per group: 0 where a LoRA does not cover a site (such a pair is left out, not regressed to
            zero), else the effect's weight.
    """
    total = torch.stack([w.sum() for w in weights]).sum().clamp(min=1e-12)

    def mean(name: str) -> Tensor:
        # epsilon keeps the errors of uncovered pairs finite, so a weight of 0 removes them and their gradient
        return torch.stack([(w * getattr(e, name)).sum() for e, w in zip(errors, weights, strict=True)]).sum() / total

    factor, update, ratio = mean("factor"), mean("update"), mean("norm_ratio")
    loss = factor if config.update == 0 else (1 - config.update) * factor + config.update * update
    return Losses(loss, factor.detach(), update.detach(), ratio.detach())
