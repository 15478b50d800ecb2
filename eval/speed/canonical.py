"""Measures canonical factors at the paper's size: a whole library, site by site, one JSON line a case, then a table.

    python -m eval.speed.canonical --out canonical.jsonl        # 51 LoRAs of rank 32 at the 480 sites of Wan2.1-I2V-14B
    python -m eval.speed.canonical --plan tiny --device cpu

Reading and writing files is not in it. The floor is what reading and writing the factors once takes at the copy
bandwidth of the same run. Sites of one shape take the same time: some of each are timed, and counted for all.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from eval.speed.inputs import Size, speed_base
from eval.speed.lines import emit, lines, options, rate_line, timed
from eval.speed.rates import copy_bandwidth
from p2e.bases.base import Base
from p2e.bases.wan import WAN_BASES
from p2e.lora.canonical import align_signs, canonical, energy
from p2e.training.setup import pick_device

__all__ = ["PLANS", "Plan", "main", "measured", "table"]


@dataclass(frozen=True)
class Plan:
    """A library: its base, number of LoRAs, their rank; how many sites of a shape are timed."""

    base: Base
    effects: int = 51
    rank: int = 32
    repeats: int = 5
    copy_bytes: int = 1 << 30


PLANS = {
    "paper": Plan(WAN_BASES["wan2.1-i2v-14b"]),
    "tiny": Plan(speed_base(Size(blocks=2, heads=2, head_dim=16, ffn=48)), effects=3, rank=4, repeats=2,
                 copy_bytes=1 << 16),
}  # fmt: skip


def measured(plan: Plan, device: torch.device, dtype: torch.dtype, bandwidth: float) -> dict[str, Any]:
    """Seconds for all sites, and the largest relative error of an update.

    Args:
        dtype: to compute in.
        bandwidth: bytes read plus bytes written a second.
    """
    total, floor, worst, by_shape = 0.0, 0.0, 0.0, {}
    for (d_out, d_in), sites in plan.base.shapes.items():
        a = torch.randn(plan.effects, plan.rank, d_in, device=device)
        b = torch.randn(plan.effects, d_out, plan.rank, device=device)
        covered = torch.ones(plan.effects, dtype=torch.bool, device=device)

        def site(_: int, a=a, b=b, covered=covered) -> tuple[torch.Tensor, torch.Tensor]:
            found = canonical(a, b, plan.rank, dtype=dtype)
            return align_signs(found.a, found.b, covered)

        run = timed(site, device, plan.repeats)
        a_star, b_star = site(0)
        # ||dW* - dW||^2 as the energy of the update [B* B] [A* ; -A]
        error = energy(torch.cat([a_star, -a], 1), torch.cat([b_star, b], 2)) / energy(a, b)
        worst = max(worst, float(error.clamp(min=0).sqrt().max()))
        by_shape[f"{d_out} x {d_in}"] = run["seconds"]
        total += run["seconds"] * len(sites)
        floor += 2 * 4 * (a.numel() + b.numel()) * len(sites) / bandwidth
    return {
        "kind": "canonical", "name": str(dtype).removeprefix("torch."), "effects": plan.effects,
        "sites": len(plan.base.sites), "rank": plan.rank, "seconds": total, "floor": floor, "error": worst,
        "seconds_a_site": by_shape,
    }  # fmt: skip


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    rows = ["| computed in | LoRAs x sites | seconds | floor | error of the update |", "|---|---|---|---|---|"]
    rows += [
        f"| {line['name']} | {line['effects']} x {line['sites']} | {line['seconds']:.2f} | {line['floor']:.3f} | "
        f"{line['error']:.1e} |"
        for line in found
        if line["kind"] == "canonical"
    ]
    return "\n".join(rows)


def main(given: Sequence[str] | None = None) -> int:
    parser = options("eval.speed.canonical", __doc__, PLANS)
    arguments = parser.parse_args(given)
    device, plan = pick_device(arguments.device), PLANS[arguments.plan]
    bandwidth = copy_bandwidth(device, plan.copy_bytes)
    emit(arguments.out, rate_line(device, copy=bandwidth))
    for dtype in (torch.float64, torch.float32):
        emit(arguments.out, measured(plan, device, dtype, bandwidth))
    print(table(lines(arguments.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
