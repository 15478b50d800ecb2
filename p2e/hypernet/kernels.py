"""Triton kernels of the two attentions of a prediction, for GPUs, and the operators that torch.compile sees of them.

`attend` is attention as the backbone has it, from the projections to what the output projection reads: queries and keys
are normalised where they are used, heads lie side by side as the projections leave them, and of the text only blocks of
positions with a token are read, so that every prompt may be padded to one length.

`decompress` is equations 10 to 12 in one pass: the attention of a site's kept queries to its latents, with the heads of
A^ and B^ folded into the values (see `Hypernet.folded_values`), so that what a query gathers is its row of a factor and
sums up over the attention's heads in registers. PyTorch's attention would write and read that sum's terms: 23 GB each
way for Wan2.1-I2V-14B at the paper's setting.

Shapes: B sequences (for the text: effects), N queries, T keys, H heads of width k, d = H k; S sites, E effects,
n latents a site, M = d_out + d_in weight tokens, r rank.
"""

import math
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["attend", "decompress"]

LOG2_E = math.log2(math.e)
# Rows and columns of a tile of scores, warps, stages: what was fastest on an H200 at the paper's size.
ATTEND, ATTEND_MASKED, DECOMPRESS = (128, 64, 8, 3), (128, 64, 4, 1), (64, 256, 4, 2)
EPS = torch.finfo(torch.float32).eps  # as torch's RMS norm has it by default, for 16 bit numbers, too


Tile = tuple[int, int, int, int]


def fitting(tile: Tile, key_width: int, value_width: int, like: Tensor) -> Tile:
    """A tile with fewer columns where a GPU's shared memory (99 KiB on an RTX 4090, 227 on an H200) is too small for
    the queries, keys and values of all its stages."""
    rows, columns, warps, stages = tile
    room = shared_memory(like.device)
    while stages * like.itemsize * (rows * key_width + columns * (key_width + value_width)) > room and columns > 16:
        columns //= 2
    return rows, columns, warps, stages


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a block of threads may have."""
    if device.type != "cuda":
        return 1 << 30
    index = torch.cuda.current_device() if device.index is None else device.index
    return triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]  # pyright: ignore


@triton.jit
def normalised(x, gain, factor, EPS: tl.constexpr, K: tl.constexpr):
    """Rows of x [*, K] divided by their root mean square, times a gain [K] and a factor; in x's type."""
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 1) / K + EPS) * factor
    return (wide * scale[:, None] * tl.load(gain + tl.arange(0, K)).to(tl.float32)[None, :]).to(x.dtype)


@triton.jit
def gathered_on(
    queries, keys, values, inside, most, total, gathered, scale, BOUNDED: tl.constexpr, WHOLE: tl.constexpr
):
    """One step of attention: keys [BN, K] and values [BN, V] join what queries [BM, K] have gathered.

    The weights are exp2(scores - most), with the running maximum of the scores, or none where they are BOUNDED: then
    the maximum, and the rescaling when it grows, are left out.
    """
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
    if BOUNDED:
        shares = tl.math.exp2(scores)
        if not WHOLE:
            shares = tl.where(inside[None, :], shares, 0.0)
    else:
        scores *= scale
        if not WHOLE:
            scores = tl.where(inside[None, :], scores, -1e30)
        peak = tl.maximum(most, tl.max(scores, 1))
        shares = tl.math.exp2(scores - peak[:, None])
        fade = tl.math.exp2(most - peak)
        total *= fade
        gathered *= fade[:, None]
        most = peak
    total += tl.sum(shares, 1)
    gathered = tl.dot(shares.to(values.dtype), values, gathered, input_precision="ieee")
    return most, total, gathered


@triton.jit
def attend_kernel(
    q, k, v, allowed, q_gain, k_gain, out, N, T, D, scale,
    K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr, NORM: tl.constexpr, BOUNDED: tl.constexpr,
    MASKED: tl.constexpr, WHOLE: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    width, columns = head * K + tl.arange(0, K), tl.arange(0, BN)
    place = (batch * N + rows[:, None]) * D + width[None, :]
    queries = tl.load(q + place, mask=rows[:, None] < N, other=0.0)
    if NORM:
        queries = normalised(queries, q_gain, scale if BOUNDED else 1.0, EPS, K)
    stop = T
    if MASKED:  # positions after a prompt's last are not read
        every = tl.arange(0, BT)
        known = tl.load(allowed + batch * T + every, mask=every < T, other=0) != 0
        stop = tl.max(tl.where(known, every + 1, 0), 0)
    most = tl.full([BM], -1e30, tl.float32)
    total = tl.zeros([BM], tl.float32)
    gathered = tl.zeros([BM, K], tl.float32)
    for start in range(0, stop, BN):
        inside = start + columns < T
        if MASKED:
            inside = tl.load(allowed + batch * T + start + columns, mask=inside, other=0) != 0
        at = (batch * T + start + columns[:, None]) * D + width[None, :]
        if WHOLE:
            keys, values = tl.load(k + at), tl.load(v + at)
        else:
            keys = tl.load(k + at, mask=start + columns[:, None] < T, other=0.0)
            values = tl.load(v + at, mask=start + columns[:, None] < T, other=0.0)
        if NORM:
            keys = normalised(keys, k_gain, 1.0, EPS, K)
        most, total, gathered = gathered_on(
            queries, keys, values, inside, most, total, gathered, scale, BOUNDED, WHOLE and not MASKED
        )
    gathered = gathered / total[:, None]
    tl.store(out + place, gathered.to(out.dtype.element_ty), mask=rows[:, None] < N)


@triton.jit
def decompress_kernel(
    queries, keys, values, q_gain, b_bound, a_bound, b, a, D_OUT, D_IN, LATENTS, R, scale,
    H: tl.constexpr, K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr, CHUNKS: tl.constexpr,
    NORM: tl.constexpr, BOUNDED: tl.constexpr, WHOLE: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    effect, block, site = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    effects, sites, tokens = tl.num_programs(0), tl.num_programs(2), D_OUT + D_IN
    blocks = tl.cdiv(D_OUT, BM)  # of rows; those of columns come after them
    column = (block >= blocks).to(tl.int32)
    rows = (block - column * blocks) * BM + tl.arange(0, BM)
    inside = rows < D_OUT + column * (D_IN - D_OUT)
    latents, width, ranks = tl.arange(0, BN), tl.arange(0, K), tl.arange(0, BR)
    pair = effect * sites + site
    query = queries + (site * tokens + column * D_OUT + rows[:, None]) * (H * K) + width[None, :]
    key = keys + pair * LATENTS * H * K + latents[:, None] * (H * K) + width[None, :]
    value = values + pair * LATENTS * 2 * H * R + latents[:, None] * (2 * H * R) + column * H * R + ranks[None, :]
    found = tl.zeros([BM, BR], tl.float32)
    for head in range(H):
        q = tl.load(query + head * K, mask=inside[:, None], other=0.0)
        if NORM:
            q = normalised(q, q_gain, scale if BOUNDED else 1.0, EPS, K)
        most = tl.full([BM], -1e30, tl.float32)
        total = tl.zeros([BM], tl.float32)
        gathered = tl.zeros([BM, BR], tl.float32)
        for chunk in tl.static_range(CHUNKS):
            there = chunk * BN + latents < LATENTS
            at_key, at_value = chunk * BN * (H * K) + head * K, chunk * BN * (2 * H * R) + head * R
            if WHOLE:
                ks, vs = tl.load(key + at_key), tl.load(value + at_value)
            else:
                ks = tl.load(key + at_key, mask=there[:, None], other=0.0)
                vs = tl.load(value + at_value, mask=there[:, None] & (ranks[None, :] < R), other=0.0)
            most, total, gathered = gathered_on(q, ks, vs, there, most, total, gathered, scale, BOUNDED, WHOLE)
        found += gathered / total[:, None]
    whole = inside[:, None] & (ranks[None, :] < R)
    result = site * effects + effect
    if column == 0:
        bound = tl.load(b_bound + (site * D_OUT + rows[:, None]) * R + ranks[None, :], mask=whole, other=0.0)
        target = b + (result * D_OUT + rows[:, None]) * R + ranks[None, :]
        tl.store(target, (found + bound.to(tl.float32)).to(b.dtype.element_ty), mask=whole)
    else:
        bound = tl.load(a_bound + (site * D_IN + rows[:, None]) * R + ranks[None, :], mask=whole, other=0.0)
        target = a + (result * R + ranks[None, :]) * D_IN + rows[:, None]
        tl.store(target, (found + bound.to(tl.float32)).to(a.dtype.element_ty), mask=whole)


@torch.library.custom_op("p2e::attend", mutates_args=())
def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    heads: int,
    allowed: Tensor | None = None,
    query_gain: Tensor | None = None,
    key_gain: Tensor | None = None,
    bounded: bool = False,
) -> Tensor:
    """softmax(q k^T / sqrt(k)) v for each head.

    Args:
        queries: [B, N, d], contiguous as all.
        keys, values: [B, T, d].
        allowed: [B, T], True on keys that are attended to; None is all.
        query_gain, key_gain: [k], of the RMS norms of queries and keys; None is no norms.
        bounded: with norms, whether exp(q k^T / sqrt(k)) can neither overflow nor vanish (see `fused.is_bounded`).

    Returns:
        [B, N, d].
    """
    (batch, n, d), t, k = queries.shape, keys.shape[1], queries.shape[2] // heads
    out, norm = torch.empty_like(queries), query_gain is not None
    tile = ATTEND if allowed is None else ATTEND_MASKED
    rows, columns, warps, stages = fitting(tile, k, k, queries)
    grid: Any = (triton.cdiv(n, rows), heads, batch)
    options: Any = {"num_warps": warps, "num_stages": stages}
    launch: Any = attend_kernel[grid]
    launch(
        queries, keys, values, queries if allowed is None else allowed.view(torch.uint8),
        query_gain if norm else queries, key_gain if norm else queries, out, n, t, d, LOG2_E / math.sqrt(k),
        k, rows, columns, triton.next_power_of_2(t) if allowed is not None else 1, norm, norm and bounded,
        allowed is not None, t % columns == 0, EPS, **options,
    )  # fmt: skip
    return out


@attend.register_fake
def _(queries: Tensor, *_: object, **__: object) -> Tensor:
    return torch.empty_like(queries)


@torch.library.custom_op("p2e::decompress", mutates_args=())
def decompress(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    b: Tensor,
    a: Tensor,
    query_gain: Tensor | None = None,
    bounded: bool = False,
) -> tuple[Tensor, Tensor]:
    """Equations 10 to 12.

    Args:
        queries: [S, M, d], contiguous as all.
        keys: normalised, [E, S, n, H, k].
        values: with B^'s heads folded in, then with A^'s, [E, S, n, 2, H, r].
        b, a: what no prompt changes of B^ and A^, [S, d_out, r] and [S, d_in, r].
        query_gain, bounded: as for `attend`.

    Returns:
        A^ [S, E, r, d_in], B^ [S, E, d_out, r].
    """
    (effects, sites, n, heads, k), rank = keys.shape, values.shape[-1]
    d_out, d_in, norm = b.shape[1], a.shape[1], query_gain is not None
    new_a, new_b = queries.new_empty(sites, effects, rank, d_in), queries.new_empty(sites, effects, d_out, rank)
    ranks = max(16, 1 << (rank - 1).bit_length())
    rows, columns, warps, stages = fitting(DECOMPRESS, k, ranks, queries)
    columns = min(columns, max(16, 1 << (n - 1).bit_length()))
    grid: Any = (effects, triton.cdiv(d_out, rows) + triton.cdiv(d_in, rows), sites)
    options: Any = {"num_warps": warps, "num_stages": stages}
    launch: Any = decompress_kernel[grid]
    launch(
        queries, keys, values, query_gain if norm else queries, b, a, new_b, new_a,
        d_out, d_in, n, rank, LOG2_E / math.sqrt(k), heads, k, rows, columns, ranks, triton.cdiv(n, columns),
        norm, norm and bounded, n % columns == 0 and rank == ranks, EPS, **options,
    )  # fmt: skip
    return new_a, new_b


@decompress.register_fake
def _(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    b: Tensor,
    a: Tensor,
    query_gain: Tensor | None = None,
    bounded: bool = False,
) -> tuple[Tensor, Tensor]:
    effects, rank = keys.shape[0], values.shape[-1]
    return (
        queries.new_empty(len(b), effects, rank, a.shape[1]),
        queries.new_empty(len(b), effects, b.shape[1], rank),
    )
