"""Blending and scaling LoRAs in weight space.

A weighted sum of low-rank updates is exact by rank concatenation:

    sum_i w_i B_i A_i = [w_1 B_1, w_2 B_2, ...] [A_1 ; A_2 ; ...]

Asked for a smaller rank, each site is truncated to its best approximation through the QR-SVD of the concatenation, and
the share of ||dW||^2 that is kept is reported.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from p2e.errors import InputError
from p2e.lora.canonical import canonical, check_factors, energy
from p2e.lora.lora import Factors, Lora, Provenance

__all__ = ["Blend", "blend", "scale"]


@dataclass(frozen=True)
class Blend:
    """A blended LoRA and what truncation kept of it.

    Attributes:
        lora: the blend, factors in float32.
        kept: site key -> share of the site's ||dW||^2 that the asked rank keeps, in [0, 1]; 1 for a zero update.
        kept_energy: the same over all sites together.
    """

    lora: Lora
    kept: Mapping[str, float]
    kept_energy: float


def blend(terms: Sequence[tuple[Lora, float]], rank: int | None = None) -> Blend:
    """The LoRA whose update is sum_i w_i dW_i.

    A site that only some terms cover gets the sum over those; biases are summed likewise.

    Args:
        terms: (LoRA, weight); a weight may be negative or zero.
        rank: rank of every site of the result, by truncation or zero padding; None keeps the exact concatenation,
            whose rank at a site is the sum of the terms' ranks there.

    Raises:
        InputError: no terms, different bases, a weight that is not finite, rank < 1, or factors of shapes that do not
            match between terms.
    """
    if not terms:
        raise InputError("nothing to blend; give at least one LoRA and its weight")
    bases = sorted({lora.base for lora, _ in terms})
    if len(bases) > 1:
        raise InputError(f"LoRAs for different bases cannot be blended ({', '.join(bases)}); choose LoRAs of one base")
    for lora, weight in terms:
        if not math.isfinite(weight):
            raise InputError(f"{_name(lora)}: weight {weight} is not finite; give a number such as 0.5")
    if rank is not None and rank < 1:
        raise InputError(f"rank {rank}: a blend has rank 1 at least")

    factors: dict[str, Factors] = {}
    kept: dict[str, float] = {}
    total = remaining = 0.0
    for key in dict.fromkeys(key for lora, _ in terms for key in lora.factors):
        a, b = _concatenate(key, terms)
        lost = 0.0
        if rank is not None:
            whole = float(energy(a, b))
            short = canonical(a, b, rank)
            a, b, lost = short.a, short.b, float(short.lost)
            total += whole
            remaining += (1 - lost) * whole
        factors[key] = Factors(a, b)
        kept[key] = 1 - lost
    biases: dict[str, Tensor] = {}
    for lora, weight in terms:
        for key, bias in lora.biases.items():
            update = weight * bias.float()
            biases[key] = biases[key] + update if key in biases else update
    recipe = json.dumps([[_name(lora), weight] for lora, weight in terms])
    lora = Lora(bases[0], factors, biases, Provenance(metadata={"p2e.blend": recipe}))
    return Blend(lora, kept, remaining / total if total > 0 else 1.0)


def _concatenate(key: str, terms: Sequence[tuple[Lora, float]]) -> tuple[Tensor, Tensor]:
    """A [sum r, d_in] and B [d_out, sum r] of one site, in float32 or wider."""
    covering = [(lora, lora.factors[key], weight) for lora, weight in terms if key in lora.factors]
    shape = covering[0][1].b.shape[0], covering[0][1].a.shape[1]
    for lora, f, _ in covering:
        check_factors(f.a, f.b, f"{_name(lora)}: {key}")
        if (f.b.shape[0], f.a.shape[1]) != shape:
            raise InputError(f"{_name(lora)}: {key} is {f.b.shape[0]} x {f.a.shape[1]}, not {shape[0]} x {shape[1]}")
    wide = torch.float32
    for _, f, _ in covering:
        wide = torch.promote_types(wide, torch.promote_types(f.a.dtype, f.b.dtype))
    a = torch.cat([f.a.to(wide) for _, f, _ in covering])
    b = torch.cat([f.b.to(wide) * weight for _, f, weight in covering], 1)
    return a, b


def scale(lora: Lora, strength: float) -> Lora:
    """The LoRA with its update multiplied by `strength`; 0 switches it off, a negative one turns it around.

    Raises:
        InputError: the strength is not finite.
    """
    if not math.isfinite(strength):
        raise InputError(f"strength {strength} is not finite; give a number such as 0.8")
    return replace(
        lora,
        factors={key: Factors(f.a, f.b * strength) for key, f in lora.factors.items()},
        biases={key: bias * strength for key, bias in lora.biases.items()},
    )


def _name(lora: Lora) -> str:
    """A short name for messages and metadata: the file's name without its folder."""
    return lora.provenance.source.rstrip("/").rsplit("/", 1)[-1] or "a LoRA made in memory"
