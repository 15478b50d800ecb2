"""The pieces that a binding is made of: which sites are together, and where their queries lie.

Shapes: S sites of a piece, n latents a site, M weight tokens a site, d width, r rank.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from p2e.bases.base import Site
from p2e.hypernet.checkpoint import Checkpoint
from p2e.hypernet.model import Bound

__all__ = ["Piece", "kept", "piece_sites", "query_bytes"]


@dataclass(frozen=True)
class Piece:
    """Some sites of one shape, bound.

    Attributes:
        sites: which.
        bound: latents [S, n, d], after the first attention of the backbone's first block, b [S, d_out, r] and
            a [S, d_in, r] on the device; its queries [S, M, d] are on the device, in host memory, or empty where they
            are made anew.
        kept: where the queries are: "device", "host" or "nowhere".
    """

    sites: tuple[Site, ...]
    bound: Bound
    kept: str


def kept(sites: tuple[Site, ...], bound: Bound, size: int, left: dict[str, float], device: torch.device) -> Piece:
    """A piece on the device, its queries where there is room; what is left of it goes down."""
    place = next((place for place in ("device", "host") if size <= left[place]), "nowhere")
    queries, left[place] = bound.queries, left.get(place, 0) - size
    if place == "nowhere":
        queries = queries.new_empty(0)
    elif place == "device":
        queries = queries.to(device)
    elif device.type == "cuda":
        queries = torch.empty_like(queries, device="cpu", pin_memory=True).copy_(queries)
    latents, b, a = (part.to(device) for part in (bound.latents, bound.b, bound.a))
    return Piece(sites, Bound(latents, queries, b, a), place)


def query_bytes(checkpoint: Checkpoint, sites: Sequence[Site]) -> int:
    tokens = sum(site.d_out + site.d_in for site in sites)
    return tokens * checkpoint.config.width * checkpoint.dtype.itemsize


def piece_sites(checkpoint: Checkpoint, tokens: int) -> Iterator[tuple[Site, ...]]:
    """The trained sites in pieces of one shape, of at most so many weight tokens each, unless a site alone has more.

    All pieces of a shape have one size where the number of its sites has a suitable divisor: each size is compiled for.
    """
    for sites in checkpoint.base.shapes.values():
        trained = tuple(site for site in sites if site.key in checkpoint.scales)
        if not trained:
            continue
        count, most = len(trained), max(1, tokens // (trained[0].d_out + trained[0].d_in))
        divisor = max(size for size in range(1, min(most, count) + 1) if count % size == 0)
        size = divisor if 2 * divisor >= min(most, count) else math.ceil(count / math.ceil(count / most))
        yield from (trained[start : start + size] for start in range(0, count, size))
