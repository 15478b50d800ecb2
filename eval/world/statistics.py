"""Means over effects with bootstrap intervals: the effects are resampled, and all columns of a resample are the same
effects, so a ratio of two columns is a ratio on one set of effects.

Shapes: E effects, R resamples.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Estimate", "bootstrap_means", "mean_of", "share_of"]

Array = NDArray[np.float64]
RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure with the percentile interval of its resamples; the bounds are NaN where there is none to give."""

    value: float
    low: float = math.nan
    high: float = math.nan


def bootstrap_means(columns: Array, *, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Means of resamples of the effects.

    Args:
        columns: [C, E]. A resample draws E effects with replacement, the same for all C columns.

    Returns:
        [C, R].
    """
    effects = columns.shape[1]
    # How often a resample draws each effect says all that a mean needs, and takes E numbers a resample.
    draws = np.random.default_rng(seed).multinomial(effects, np.full(effects, 1 / effects), size=resamples)
    return columns @ (draws.T / effects)


def interval(samples: Array, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval, NaN where a resample has no value."""
    if not np.isfinite(samples).all():
        return math.nan, math.nan
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_of(column: Array, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Mean over effects [E]; without an interval where there is one effect."""
    if len(column) < 2:
        return Estimate(float(column.mean()) if len(column) else math.nan)
    return Estimate(float(column.mean()), *interval(bootstrap_means(column[None], resamples=resamples, seed=seed)[0]))


def share_of(
    column: Array, reference: Array, base: Array | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """(mean(column) - mean(base)) / (mean(reference) - mean(base)): the ratio of means, not the mean of ratios, which
    an effect with a small denominator would rule.

    Args:
        column, reference: [E].
        base: [E]; None is 0, the fidelity of a still picture.

    Returns:
        The share; NaN where the reference gains nothing, and without bounds where it gains nothing in a resample.
    """
    start = np.zeros_like(column) if base is None else base
    stacked = np.stack([column - start, reference - start])
    if not column.size:
        return Estimate(math.nan)
    value = _ratio(*stacked.mean(1, keepdims=True))[0]
    if len(column) < 2:
        return Estimate(float(value))
    samples = bootstrap_means(stacked, resamples=resamples, seed=seed)
    return Estimate(float(value), *interval(_ratio(*samples)))


def _ratio(above: Array, below: Array) -> Array:
    positive = below > 0
    return np.where(positive, above / np.where(positive, below, 1.0), np.nan)
