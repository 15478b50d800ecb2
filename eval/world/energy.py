"""Where a LoRA's update lies in the singular basis of the weight it adapts: the twin of the paper's figure 2.

For a site with W0 = U S V^T and an update dW, the energy that the k leading directions hold is
    left    |U_k^T dW|^2 / |dW|^2         right   |dW V_k|^2 / |dW|^2         both    |U_k^T dW V_k|^2 / |dW|^2
"both" is the projection into the top-k subspaces that the paper describes; beside it stands W0's own,
sum of s_i^2 up to k. A random update's is known: its energy is spread evenly, so the k leading directions hold
k / d_out, k / d_in and k^2 / (d_out d_in) of it. k runs in shares of min(d_out, d_in), as sites differ in size.

Shapes: N updates, K shares, d = min(d_out, d_in).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from p2e.bases.weights import WeightReader
from p2e.lora.lora import Factors, Lora

__all__ = ["KINDS", "SHARES", "Energies", "library_energies", "site_energies"]

KINDS = ("base", "left", "right", "both")
SHARES = tuple(i / 64 for i in range(65))


@dataclass(frozen=True)
class Energies:
    """Mean and standard deviation over all pairs of LoRA and site, as the paper draws them, at each of SHARES.

    Attributes:
        mean, deviation, random: kind -> [K]; `random` is what an update without any preference has.
        modules: module type -> kind -> mean [K].
        pairs: how many pairs of LoRA and site.
    """

    mean: Mapping[str, Tensor]
    deviation: Mapping[str, Tensor]
    random: Mapping[str, Tensor]
    modules: Mapping[str, Mapping[str, Tensor]]
    pairs: int


def site_energies(w0: Tensor, updates: Sequence[Factors]) -> dict[str, Tensor]:
    """Cumulative energy of one site, kind -> [N, K] ("base": [1, K]); updates that are zero are left out."""
    u, s, vh = torch.linalg.svd(w0.double(), full_matrices=False)
    d = len(s)
    counts = torch.tensor([round(share * d) for share in SHARES])
    rows: dict[str, list[Tensor]] = {"base": [_cumulative(s.square() / s.square().sum())[counts]]}
    for factors in updates:
        a, b = factors.a.double(), factors.b.double()
        total = ((b.mT @ b) * (a @ a.mT)).sum()
        if total <= 0:
            continue
        left, right = u.mT @ b, a @ vh.mT  # [d, r], [r, d]
        # |u_i^T dW|^2 = l_i (A A^T) l_i^T with l_i the row i of U^T B; for V likewise.
        rows.setdefault("left", []).append(_cumulative(((left @ (a @ a.mT)) * left).sum(1) / total)[counts])
        rows.setdefault("right", []).append(_cumulative((((b.mT @ b) @ right) * right).sum(0) / total)[counts])
        corner = (left @ right).square().cumsum(0).cumsum(1).diagonal() / total
        rows.setdefault("both", []).append(torch.cat([corner.new_zeros(1), corner])[counts])
    return {kind: torch.stack(found) for kind, found in rows.items()}


def random_energies(d_out: int, d_in: int) -> dict[str, Tensor]:
    """What the k leading directions hold of an update that prefers none: its expectation, kind -> [K]."""
    k = torch.tensor([round(share * min(d_out, d_in)) for share in SHARES], dtype=torch.float64)
    return {"left": k / d_out, "right": k / d_in, "both": k.square() / (d_out * d_in)}


def library_energies(weights: WeightReader, loras: Iterable[Lora]) -> Energies:
    """Energies over a library: every pair of a LoRA and a site that it covers weighs the same."""
    chosen = list(loras)
    curves: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    random: dict[str, list[Tensor]] = {kind: [] for kind in KINDS[1:]}
    modules: dict[str, dict[str, list[Tensor]]] = {}
    for site in weights.base.sites:
        found = site_energies(
            weights.read(site), [lora.factors[site.key] for lora in chosen if site.key in lora.factors]
        )
        count = len(found.get("both", ()))
        for kind, values in found.items():
            curves[kind].append(values.expand(count, -1) if kind == "base" else values)
            modules.setdefault(site.module, {}).setdefault(kind, []).append(curves[kind][-1])
        for kind, values in random_energies(site.d_out, site.d_in).items():
            random[kind].append(values.expand(count, -1))
    whole = {kind: torch.cat(parts) for kind, parts in curves.items() if parts}
    return Energies(
        mean={kind: x.mean(0) for kind, x in whole.items()},
        deviation={kind: x.std(0) for kind, x in whole.items()},
        random={kind: torch.cat(parts).mean(0) for kind, parts in random.items()},
        modules={m: {kind: torch.cat(x).mean(0) for kind, x in kinds.items()} for m, kinds in modules.items()},
        pairs=len(whole["both"]) if "both" in whole else 0,
    )


def _cumulative(x: Tensor) -> Tensor:
    """Sums of the first 0, 1, ... n entries, [n + 1]."""
    return torch.cat([x.new_zeros(1), x.cumsum(0)])
