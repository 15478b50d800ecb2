"""Means, shares and their bootstrap intervals: known answers, and what must not change them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.world.statistics import bootstrap_means, mean_of, share_of

few = settings(deadline=None, max_examples=25)
values = st.lists(st.floats(-3, 1), min_size=2, max_size=30).map(np.array)


def normal(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count)


def test_the_interval_is_that_of_a_mean():
    """For many effects the bootstrap is the normal interval, of half width 1.96 standard errors."""
    x = normal(400)
    found = mean_of(x)
    half = 1.96 * x.std() / math.sqrt(len(x))
    assert found.value == pytest.approx(x.mean())
    assert found.low == pytest.approx(x.mean() - half, abs=0.05 * half)
    assert found.high == pytest.approx(x.mean() + half, abs=0.05 * half)


def test_the_interval_covers_as_often_as_it_says():
    """Of 200 samples of 40 effects, about 95 % of the intervals hold the true mean of 0."""
    held = 0
    for seed in range(200):
        found = mean_of(normal(40, seed), resamples=500, seed=seed)
        held += found.low <= 0 <= found.high
    assert 0.88 <= held / 200 <= 0.99


def test_two_effects_by_hand():
    """Resamples of (0, 1) have means 0, 1/2 and 1, with probabilities 1/4, 1/2 and 1/4."""
    means = bootstrap_means(np.array([[0.0, 1.0]]))[0]
    share = [float((means == m).mean()) for m in (0.0, 0.5, 1.0)]
    assert sum(share) == 1 and share == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    assert (mean_of(np.array([0.0, 1.0])).low, mean_of(np.array([0.0, 1.0])).high) == (0, 1)


def test_a_share_is_the_ratio_of_means():
    base, lora, column = np.array([-1.0, 0.0]), np.array([1.0, 0.1]), np.array([0.0, 0.1])
    assert share_of(column, lora, base).value == pytest.approx((0.05 + 0.5) / (0.55 + 0.5))
    assert share_of(column, lora).value == pytest.approx(0.05 / 0.55)


def test_one_effect_has_no_interval_and_none_no_value():
    one = share_of(np.array([0.5]), np.array([1.0]))
    assert one.value == 0.5 and math.isnan(one.low) and math.isnan(mean_of(np.array([0.5])).high)
    assert math.isnan(mean_of(np.zeros(0)).value) and math.isnan(share_of(np.zeros(0), np.zeros(0)).value)


def test_a_reference_without_gain_has_no_share():
    x = np.array([0.1, 0.2, 0.3])
    assert math.isnan(share_of(x, -x).value)
    # It gains on average, but not in every resample: the share stands, without bounds.
    found = share_of(x, np.array([-0.5, 0.2, 0.9]))
    assert found.value == pytest.approx(1.0) and math.isnan(found.low)


@few
@given(values, st.integers(0, 5))
def test_what_is_the_reference_has_all_and_the_base_nothing(x: np.ndarray, seed: int):
    base, lora = x - 5, x
    whole, none = share_of(lora, lora, base, resamples=200, seed=seed), share_of(base, lora, base, resamples=200)
    assert (whole.value, whole.low, whole.high) == pytest.approx((1, 1, 1))
    assert (none.value, none.low, none.high) == pytest.approx((0, 0, 0))


@few
@given(values, st.floats(0.1, 10), st.floats(-5, 5))
def test_shares_know_neither_unit_nor_origin(x: np.ndarray, unit: float, origin: float):
    lora, base = x + 4, x - normal(len(x)) ** 2 - 0.5
    one = share_of(x, lora, base, resamples=200)
    two = share_of(unit * x + origin, unit * lora + origin, unit * base + origin, resamples=200)
    assert (two.value, two.low, two.high) == pytest.approx((one.value, one.low, one.high), rel=1e-6, abs=1e-9)


@few
@given(values)
def test_the_mean_lies_in_its_interval_and_the_interval_in_the_data(x: np.ndarray):
    found = mean_of(x, resamples=400)
    slack = 1e-9
    assert x.min() - slack <= found.low <= found.high <= x.max() + slack
    assert mean_of(x, resamples=400) == found


def test_order_of_the_effects_moves_only_the_resamples():
    x = normal(60)
    one, two = mean_of(x), mean_of(x[::-1].copy())
    assert one.value == pytest.approx(two.value)
    assert (one.low, one.high) == pytest.approx((two.low, two.high), abs=0.02)


def test_columns_are_resampled_together():
    """Two columns that differ by a constant differ by it in every resample."""
    x = normal(20)
    one, two = bootstrap_means(np.stack([x, x + 3]), resamples=300)
    np.testing.assert_allclose(two - one, 3)
