"""Canonical factors: invariance under re-factorisation, agreement with a dense SVD, signs of a library, speed."""

import statistics
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from p2e.errors import InputError
from p2e.lora.canonical import align_signs, canonical, energy, inner, pad_rank

RELATIVE = 1e-5
PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)


def orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64, generator=generator))[0]


def update(seed: int, d_out: int, d_in: int, values: list[float]) -> tuple[Tensor, Tensor]:
    """Factors of an update with the given singular values, in a random gauge."""
    generator = torch.Generator().manual_seed(seed)
    r = len(values)
    u, v = orthonormal(d_out, r, generator), orthonormal(d_in, r, generator)
    return refactor(torch.diag(torch.tensor(values, dtype=torch.float64)) @ v.mT, u, seed + 1)


def refactor(a: Tensor, b: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """(B R, R^-1 A) with a random R of condition number at most 100, a permutation and sign flips."""
    generator = torch.Generator().manual_seed(seed)
    r = a.shape[0]
    spread = torch.logspace(-1, 1, r, dtype=torch.float64)[torch.randperm(r, generator=generator)]
    mix = orthonormal(r, r, generator) @ torch.diag(spread) @ orthonormal(r, r, generator)
    order = torch.randperm(r, generator=generator)
    flips = torch.randint(0, 2, (r,), generator=generator).double() * 2 - 1
    a, b = torch.linalg.solve(mix, a), b @ mix
    return a[order] * flips[:, None], b[:, order] * flips


def close(x: Tensor, y: Tensor, relative: float = RELATIVE) -> bool:
    return bool((x - y).norm() <= relative * max(float(y.norm()), 1e-300))


sizes = st.tuples(st.integers(2, 40), st.integers(2, 40))
gaps = st.lists(st.floats(1.05, 3.0), min_size=1, max_size=6)
seeds = st.integers(0, 2**31 - 8)


@given(sizes, gaps, seeds, st.floats(1e-4, 1e4), st.integers(0, 3))
@PROPERTY
def test_a_re_factorisation_gives_the_same_factors(size, ratios, seed, scale, zeros):
    d_out, d_in = size
    falling = scale / torch.tensor(ratios, dtype=torch.float64).cumprod(0)
    r = min(len(ratios), d_out, d_in)
    values = [*falling[:r].tolist(), *[0.0] * zeros][: min(d_out, d_in)]  # zeros: a rank-deficient update
    a, b = update(seed, d_out, d_in, values)
    first = canonical(a, b, len(values))
    second = canonical(*refactor(a, b, seed + 7), len(values))
    assert close(second.a, first.a) and close(second.b, first.b)
    assert close(first.b @ first.a, b @ a)
    assert float(first.lost) == 0


@given(sizes, seeds, st.integers(2, 5), st.integers(0, 3))
@PROPERTY
def test_tied_singular_values_keep_update_and_subspaces(size, seed, ties, distinct):
    d_out, d_in = size
    values = ([4.0] * ties + [2.0, 1.0, 0.5][:distinct])[: min(size)]
    a, b = update(seed, d_out, d_in, values)
    first = canonical(a, b, 8)
    second = canonical(*refactor(a, b, seed + 7), 8)
    assert close(first.b @ first.a, b @ a) and close(second.b @ second.a, b @ a)
    tied = min(ties, len(values))
    for part in (slice(0, tied), slice(tied, None)):
        assert torch.allclose(
            first.b[:, part] @ first.b[:, part].mT, second.b[:, part] @ second.b[:, part].mT, atol=1e-8
        )
        assert torch.allclose(first.a[part].mT @ first.a[part], second.a[part].mT @ second.a[part], atol=1e-8)


@given(sizes, seeds, st.integers(1, 48), st.integers(1, 48))
@PROPERTY
def test_agrees_with_the_dense_svd(size, seed, r, rank):
    d_out, d_in = size
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(r, d_in, dtype=torch.float64, generator=generator)
    b = torch.randn(d_out, r, dtype=torch.float64, generator=generator)  # r may exceed d_out and d_in
    u, s, vh = torch.linalg.svd(b @ a, full_matrices=False)
    s[r:] = 0
    got = canonical(a, b, rank)
    assert got.a.shape == (rank, d_in) and got.b.shape == (d_out, rank)
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    assert close(got.b @ got.a, best, 1e-8)
    expected = torch.zeros(rank, dtype=torch.float64)
    expected[: min(rank, len(s))] = s[:rank]
    assert torch.allclose(got.a.square().sum(1), expected, rtol=1e-8, atol=1e-10)
    assert torch.allclose(got.b.square().sum(0), expected, rtol=1e-8, atol=1e-10)
    assert abs(float(got.lost) - float(s[rank:].square().sum() / s.square().sum())) < 1e-10


def test_rank_deficient_updates_stored_in_float32_keep_clean_zeros():
    a, b = update(3, 60, 50, [1.0, 0.3, 0.0, 0.0])
    c, d = refactor(a, b, 5)
    one, two = canonical(a.float(), b.float(), 4), canonical(c.float(), d.float(), 4)
    assert one.a.dtype == torch.float32
    assert float(one.a[2:].abs().max()) == 0 == float(two.b[:, 2:].abs().max())
    assert close(one.a, two.a) and close(one.b, two.b)


def test_a_batch_equals_its_members_and_mixed_ranks_pad():
    generator = torch.Generator().manual_seed(0)
    members = [(torch.randn(r, 24, generator=generator), torch.randn(30, r, generator=generator)) for r in (2, 5, 8)]
    padded = [pad_rank(a, b, 8) for a, b in members]
    batch = canonical(torch.stack([a for a, _ in padded]), torch.stack([b for _, b in padded]), 6)
    for index, (a, b) in enumerate(members):
        alone = canonical(a, b, 6)
        assert close(batch.a[index], alone.a) and close(batch.b[index], alone.b)
        assert abs(float(batch.lost[index] - alone.lost)) < 1e-6
    assert [float(x) > 0 for x in batch.lost] == [False, False, True]


def test_zero_and_bfloat16_updates():
    zero = canonical(torch.zeros(2, 5), torch.zeros(4, 2), 3)
    assert float(zero.a.abs().sum() + zero.b.abs().sum() + zero.lost) == 0
    a, b = torch.randn(4, 16).bfloat16(), torch.randn(12, 4).bfloat16()
    got = canonical(a, b, 4)
    assert got.a.dtype == torch.float32 and close(got.b @ got.a, b.float() @ a.float())
    single = canonical(a, b, 4, dtype=torch.float32)
    assert close(single.a, got.a, 1e-4) and close(single.b, got.b, 1e-4)


@pytest.mark.parametrize(
    ("a", "b", "rank", "says"),
    [
        (torch.zeros(2, 5), torch.zeros(4, 3), 2, "do not match"),
        (torch.zeros(3, 2, 5), torch.zeros(4, 2), 2, "do not match"),
        (torch.full((2, 5), float("nan")), torch.zeros(4, 2), 2, "NaN or infinite"),
        (torch.zeros(2, 5), torch.full((4, 2), float("inf")), 2, "NaN or infinite"),
        (torch.zeros(2, 5), torch.zeros(4, 2), 0, "at least 1"),
    ],
)
def test_bad_factors_are_one_line(a, b, rank, says):
    with pytest.raises(InputError, match=says) as error:
        canonical(a, b, rank)
    assert "\n" not in str(error.value)


@given(seeds, st.integers(1, 5), st.integers(1, 5))
@PROPERTY
def test_gram_products_equal_the_dense_ones(seed, r1, r2):
    generator = torch.Generator().manual_seed(seed)
    a1, b1, a2, b2 = (
        torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((r1, 9), (7, r1), (r2, 9), (7, r2))
    )
    assert torch.allclose(inner(a1, b1, a2, b2), ((b1 @ a1) * (b2 @ a2)).sum())
    assert torch.allclose(energy(a1, b1), (b1 @ a1).square().sum())


def library(seed: int, effects: int = 9, spread: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Effects that share each component up to noise and sign; returns A, B and the true signs [E, r]."""
    generator = torch.Generator().manual_seed(seed)
    common_a, common_b = torch.randn(4, 20, generator=generator), torch.randn(16, 4, generator=generator)
    a = common_a + spread * torch.randn(effects, 4, 20, generator=generator)
    b = common_b + spread * torch.randn(effects, 16, 4, generator=generator)
    signs = torch.randint(0, 2, (effects, 4), generator=generator).float() * 2 - 1
    return a * signs[:, :, None], b * signs[:, None, :], signs


@given(seeds)
@PROPERTY
def test_signs_of_a_library_agree(seed):
    a, b, truth = library(seed)
    mask = torch.ones(len(a), dtype=torch.bool)
    aligned_a, aligned_b = align_signs(a, b, mask)
    flips = (aligned_a / a)[:, :, 0] * truth  # the same for all effects, whatever they came in with
    assert bool((flips == flips[:1]).all())
    assert torch.equal(aligned_b @ aligned_a, b @ a) or close(aligned_b @ aligned_a, b @ a, 1e-6)


@given(seeds, st.floats(0.0, 5.0))
@PROPERTY
def test_incoming_signs_do_not_matter(seed, spread):
    a, b, _ = library(seed, spread=spread)
    a, b = a.double(), b.double()
    mask = torch.ones(len(a), dtype=torch.bool)
    mask[2] = False
    generator = torch.Generator().manual_seed(seed + 1)
    signs = torch.randint(0, 2, a.shape[:2], generator=generator).double() * 2 - 1
    signs[2] = 1  # not covered: left alone
    one = align_signs(a, b, mask)
    two = align_signs(a * signs[:, :, None], b * signs[:, None, :], mask)
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    assert torch.equal(one[0][2], a[2])


def test_effects_without_a_vote_follow_the_reference():
    a, b, truth = library(11, spread=0.3)
    mask = torch.ones(len(a), dtype=torch.bool)
    voters = torch.zeros_like(mask)
    voters[:4] = True
    alone_a, _ = align_signs(a[:4], b[:4], mask[:4])
    all_a, _ = align_signs(a, b, mask, voters)
    assert torch.equal(all_a[:4], alone_a)
    flips = (all_a / a)[:, :, 0] * truth
    assert bool((flips == flips[:1]).all())


@pytest.mark.slow
def test_a_wide_update_takes_little_time():
    """5120 x 5120 at rank 32 within 1.2 s on 2 cores; the median of 3 leaves a busy machine one bad run."""
    a, b = torch.randn(32, 5120), torch.randn(5120, 32)
    canonical(a, b, 32)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        canonical(a, b, 32)
        seconds.append(time.perf_counter() - start)
    assert statistics.median(seconds) < 1.2
