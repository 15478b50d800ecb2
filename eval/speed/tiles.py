"""Times the tiles of the attention kernels beside PyTorch's attention, one JSON line each, then a table.

    python -m eval.speed.tiles --out tiles.jsonl          # the paper's size; for the constants of p2e.hypernet.kernels
    TRITON_INTERPRET=1 python -m eval.speed.tiles --plan tiny --device cpu

A tile is rows and columns of a block of scores, warps, and stages of loads. PyTorch's attention gets queries and keys
that are normalised and transposed already, which the kernels do themselves; of the decompressor, PyTorch's way is
`Hypernet.decompressed`, with projections on both sides. Errors are against float32.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.speed.inputs import Size, speed_base
from eval.speed.lines import emit, lines, options, rate_line
from eval.speed.rates import seconds_per_call
from p2e.bases.base import Base
from p2e.bases.wan import WAN_BASES
from p2e.config import HypernetConfig
from p2e.hypernet.fused import Decompressor
from p2e.hypernet.model import Bound, Hypernet
from p2e.training.setup import pick_device

__all__ = ["PLANS", "Plan", "main", "table"]

TILES = ((128, 64, 4, 1), (128, 64, 4, 2), (128, 64, 4, 3), (128, 64, 8, 2), (128, 64, 8, 3), (128, 128, 4, 2),
         (128, 128, 8, 2), (128, 128, 8, 3), (64, 64, 4, 2), (64, 64, 4, 3), (64, 128, 4, 2), (64, 256, 4, 2),
         (256, 64, 8, 2))  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Sizes: sites in a pass, positions and tokens of a prompt; the rest is the network's and the base's."""

    base: Base
    hypernet: HypernetConfig
    sites: int = 16
    positions: int = 512
    words: int = 40
    dtype: torch.dtype = torch.bfloat16
    tiles: tuple[tuple[int, int, int, int], ...] = TILES
    seconds: float = 0.05


PLANS = {
    "paper": Plan(WAN_BASES["wan2.1-i2v-14b"], HypernetConfig()),
    "tiny": Plan(
        speed_base(Size(blocks=2, heads=2, head_dim=16, ffn=48)),
        HypernetConfig(width=32, layers=1, heads=2, latents=20, rank=4, ffn_ratio=2),
        sites=1, positions=40, words=7, dtype=torch.float32, tiles=TILES[:2], seconds=0.0,
    ),
}  # fmt: skip


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(queries, keys, values)


def run(plan: Plan, device: torch.device, emitted: Callable[[dict[str, Any]], None]) -> None:
    from triton.runtime.errors import OutOfResources

    from p2e.hypernet import kernels

    config, (d_out, d_in) = plan.hypernet, next(iter(plan.base.shapes))
    d, n, heads, tokens = config.width, config.latents, config.heads, d_out + d_in

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(plan.dtype)

    gain = torch.ones(d // heads, device=device, dtype=plan.dtype)
    mask = torch.arange(plan.positions, device=device)[None] < plan.words
    shapes = {  # sequences, queries, keys, mask
        "latents": (plan.sites, n, n, None), "text": (1, plan.sites * n, plan.positions, mask),
        "compression": (plan.sites, n, tokens, None),
    }  # fmt: skip

    def timed(name: str, tile: object, function: Callable[[], Tensor], true: Tensor | None = None) -> None:
        try:
            error = 0.0 if true is None else float((function().float() - true).norm() / true.norm())
            seconds = seconds_per_call(function, device, plan.seconds)
            emitted({"kind": "tile", "name": name, "tile": tile, "seconds": seconds, "error": error})
        except (RuntimeError, OutOfResources) as problem:
            emitted({"kind": "failure", "name": name, "tile": tile, "error": str(problem)[:200]})

    for name, (batch, queries, keys, allowed) in shapes.items():
        q, k, v = draw(batch, queries, d), draw(batch, keys, d), draw(batch, keys, d)
        stop = plan.words if allowed is not None else keys
        a, b, c = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k[:, :stop], v[:, :stop]))
        a, b, c = F.rms_norm(a, (d // heads,)), F.rms_norm(b, (d // heads,)), c.contiguous()
        true = attention(a.float(), b.float(), c.float()).transpose(1, 2).flatten(2)
        timed(name, "PyTorch", partial(attention, a, b, c))
        for tile in plan.tiles:
            kernels.ATTEND = kernels.ATTEND_MASKED = tile
            timed(
                name, tile, lambda q=q, k=k, v=v, m=allowed: kernels.attend(q, k, v, heads, m, gain, gain, True), true
            )

    with device:
        model = Hypernet(config, plan.base).to(plan.dtype).requires_grad_(False)
    bound = Bound(draw(0), draw(plan.sites, tokens, d), draw(plan.sites, d_out, config.rank),
                  draw(plan.sites, d_in, config.rank))  # fmt: skip
    latents, folded = draw(1, plan.sites, n, d), model.heads()
    wide = model.float().decompressed(Bound(*(x.float() for x in bound)), latents.float())[1]
    model.to(plan.dtype)
    decompressor = Decompressor(model)
    timed("decompression", "PyTorch", lambda: model.decompressed(bound, latents, folded)[1], wide)
    for tile in plan.tiles:
        kernels.DECOMPRESS = tile
        timed("decompression", tile, lambda: decompressor(bound, latents)[1], wide)


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown: the quickest first."""
    rows = ["| attention | tile | milliseconds | error |", "|---|---|---|---|"]
    tiles = [line for line in found if line["kind"] == "tile"]
    for name in dict.fromkeys(line["name"] for line in tiles):
        mine = sorted((line for line in tiles if line["name"] == name), key=lambda line: line["seconds"])
        rows += [f"| {name} | {line['tile']} | {1e3 * line['seconds']:.3f} | {line['error']:.1e} |" for line in mine]
    return "\n".join(rows)


def main(given: Sequence[str] | None = None) -> int:
    parser = options("eval.speed.tiles", __doc__, PLANS)
    arguments = parser.parse_args(given)
    device = pick_device(arguments.device)
    emit(arguments.out, rate_line(device))
    from p2e.hypernet import kernels

    kept = kernels.ATTEND, kernels.ATTEND_MASKED, kernels.DECOMPRESS
    try:
        run(PLANS[arguments.plan], device, lambda line: emit(arguments.out, line))
    finally:
        kernels.ATTEND, kernels.ATTEND_MASKED, kernels.DECOMPRESS = kept
    print(table(lines(arguments.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
