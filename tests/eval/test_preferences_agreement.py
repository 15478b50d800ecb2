"""Agreement of raters: worked examples of the literature, and what must not change it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.preferences.agreement import cohen_kappa, krippendorff_alpha

few = settings(deadline=None, max_examples=50)
labels = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40)
units = st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=30)


def test_kappa_of_a_worked_example():
    """50 proposals, of which two readers accept 20 and refuse 15 together: 0.7 observed, 0.5 by chance."""
    one = ["yes"] * 25 + ["no"] * 25
    two = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(one, two) == pytest.approx(0.4)


def test_alpha_of_krippendorffs_examples():
    """Two observers of ten units; four of twelve, with labels missing (Krippendorff 2011, sections A and C)."""
    two = zip([0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0], strict=True)
    assert krippendorff_alpha([list(pair) for pair in two]) == pytest.approx(0.095, abs=5e-4)
    rows = ("123321412...", "123322412 5.3".replace(" ", ""), ".3332342251.", "12332441251.")
    columns = [[label for label in column if label != "."] for column in zip(*rows, strict=True)]
    assert krippendorff_alpha(columns) == pytest.approx(0.743, abs=5e-4)


def test_what_cannot_be_told():
    assert math.isnan(cohen_kappa([], [])) and math.isnan(cohen_kappa([1, 1], [1, 1]))
    assert math.isnan(krippendorff_alpha([[1], [2], []])) and math.isnan(krippendorff_alpha([[1, 1], [1, 1, 1]]))
    with pytest.raises(ValueError, match="2 labels and 1"):
        cohen_kappa([1, 2], [1])


@few
@given(labels)
def test_kappa_is_symmetric_and_knows_no_names(pairs: list[tuple[int, int]]):
    one, two = [a for a, _ in pairs], [b for _, b in pairs]
    found = cohen_kappa(one, two)
    names = {0: "z", 1: "x", 2: "y"}
    assert cohen_kappa(two, one) == pytest.approx(found, nan_ok=True)
    assert cohen_kappa([names[a] for a in one], [names[b] for b in two]) == pytest.approx(found, nan_ok=True)
    assert math.isnan(found) or -1 <= found <= 1 + 1e-12
    if one == two and len(set(one)) > 1:
        assert found == pytest.approx(1)


@few
@given(units, st.randoms(use_true_random=False))
def test_alpha_knows_no_order_and_no_names(given_units: list[list[int]], random):
    found = krippendorff_alpha(given_units)
    mixed = [random.sample(unit, len(unit)) for unit in random.sample(given_units, len(given_units))]
    assert krippendorff_alpha([[f"label {label}" for label in unit] for unit in mixed]) == pytest.approx(
        found, nan_ok=True
    )
    assert math.isnan(found) or found <= 1 + 1e-12
    whole = [[unit[0]] * len(unit) for unit in given_units if len(unit) > 1]
    if len({unit[0] for unit in whole}) > 1:
        assert krippendorff_alpha(whole) == pytest.approx(1)


def test_chance_agrees_by_nothing():
    random = np.random.default_rng(0)
    drawn = random.choice(3, size=(4000, 3), p=[0.7, 0.2, 0.1])
    assert abs(krippendorff_alpha(drawn.tolist())) < 0.03
    assert abs(cohen_kappa(drawn[:, 0].tolist(), drawn[:, 1].tolist())) < 0.04
