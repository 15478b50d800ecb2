"""Equation 13 and the update's error, against their definitions."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p2e.config import LossConfig
from p2e.hypernet.losses import Errors, combine, factor_error, site_errors, update_norms


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6))
def test_gram_form_is_the_dense_form(r_hat: int, r: int, d_out: int, d_in: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    a_hat, b_hat = (torch.randn(2, 3, *s, generator=g).double() for s in ((r_hat, d_in), (d_out, r_hat)))
    a, b = (torch.randn(2, 3, *s, generator=g).double() for s in ((r, d_in), (d_out, r)))
    error, predicted, target = update_norms(a_hat, b_hat, a, b)
    dense_hat, dense = b_hat @ a_hat, b @ a
    torch.testing.assert_close(error, (dense_hat - dense).square().sum((-1, -2)))
    torch.testing.assert_close(predicted, dense_hat.square().sum((-1, -2)))
    torch.testing.assert_close(target, dense.square().sum((-1, -2)))


def test_factor_error_is_the_relative_frobenius_error() -> None:
    x, y = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    for s in range(2):
        for e in range(3):
            known = (x[s, e] - y[s, e]).norm() ** 2 / (y[s, e].norm() ** 2 + 1e-3 * y[s, e].numel())
            torch.testing.assert_close(factor_error(x, y, 1e-3)[s, e], known)


def test_perfect_and_zero_predictions() -> None:
    a, b = torch.randn(2, 3, 4, 7), torch.randn(2, 3, 9, 4)
    perfect = site_errors(a, b, a, b, 1e-9)
    assert float(perfect.factor.max()) == 0 and float(perfect.update.max()) < 1e-5
    torch.testing.assert_close(perfect.norm_ratio, torch.ones(2, 3))
    zero = site_errors(a * 0, b * 0, a, b, 1e-9)
    torch.testing.assert_close(zero.factor, torch.ones(2, 3))
    torch.testing.assert_close(zero.update, torch.ones(2, 3))


def test_a_sign_flip_of_a_component_changes_the_factors_but_not_the_update() -> None:
    a, b = torch.randn(1, 1, 4, 7), torch.randn(1, 1, 9, 4)
    sign = torch.tensor([1.0, -1.0, 1.0, 1.0])
    errors = site_errors(a * sign[:, None], b * sign, a, b, 1e-9)
    assert float(errors.factor) > 0.1 and float(errors.update) < 1e-5


def test_uncovered_pairs_are_left_out_and_weights_count() -> None:
    a, b = torch.randn(2, 2, 4, 7), torch.randn(2, 2, 9, 4)
    a[0, 1], b[0, 1] = 0.0, 0.0  # an uncovered site has no target: any prediction there is as good as another
    a_hat = torch.randn_like(a).requires_grad_()
    errors = site_errors(a_hat, b, a, b, 1e-6)
    weight = torch.tensor([[1.0, 0.0], [2.0, 1.0]])
    losses = combine([errors], [weight], LossConfig.parse({"update": 0.25}))
    keep = [(0, 0, 1.0), (1, 0, 2.0), (1, 1, 1.0)]
    factor = sum(w * errors.factor[s, e] for s, e, w in keep) / 4
    update = sum(w * errors.update[s, e] for s, e, w in keep) / 4
    torch.testing.assert_close(losses.loss, 0.75 * factor + 0.25 * update)
    losses.loss.backward()
    assert a_hat.grad is not None and bool(torch.isfinite(a_hat.grad).all())
    assert float(a_hat.grad[0, 1].abs().max()) == 0


def test_groups_count_by_their_pairs_not_by_their_number() -> None:
    def errors(value: float, pairs: int) -> Errors:
        return Errors(*(torch.full((pairs, 1), value) for _ in range(3)))

    losses = combine([errors(1.0, 3), errors(5.0, 1)], [torch.ones(3, 1), torch.ones(1, 1)], LossConfig())
    assert float(losses.loss) == 2.0
