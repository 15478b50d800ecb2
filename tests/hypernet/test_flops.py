"""The count of floating-point operations against what PyTorch counts when the network runs."""

from typing import cast

import pytest
import torch
from tiny import tiny_base
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from p2e.config import HypernetConfig, LossConfig
from p2e.hypernet.flops import forward_flops, training_flops
from p2e.hypernet.model import Hypernet, Sites
from p2e.hypernet.variants import build_hypernet
from p2e.training.data import Batch
from p2e.training.step import Objective

EFFECTS, TOKENS, TEXT, RANK = 3, 5, 384, 4
SHAPES = [(2, 32, 32), (1, 64, 32)]


def batch() -> Batch:
    sites = [Sites(torch.randn(n, o, i), torch.arange(n) % 2, torch.arange(n)) for n, o, i in SHAPES]
    a = [torch.randn(n, EFFECTS, RANK, i) for n, _, i in SHAPES]
    b = [torch.randn(n, EFFECTS, o, RANK) for n, o, _ in SHAPES]
    weight = [torch.ones(n, EFFECTS) for n, _, _ in SHAPES]
    text, mask = torch.randn(EFFECTS, TOKENS, TEXT), torch.ones(EFFECTS, TOKENS, dtype=torch.bool)
    return Batch(sites, a, b, weight, text, mask)


@pytest.mark.parametrize("across_sites", [False, True])
def test_the_count_is_what_pytorch_counts(across_sites: bool) -> None:
    config = HypernetConfig(width=32, layers=2, heads=4, latents=6, rank=RANK, ffn_ratio=2.5, across_sites=across_sites)
    torch.manual_seed(0)
    model = cast(Hypernet, build_hypernet(config, tiny_base("toy")))
    data, asked = batch(), (SHAPES, EFFECTS, TOKENS, TEXT)
    # PyTorch counts the products of the plain form of attention.
    with FlopCounterMode(display=False) as forward, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model.predict_sites(data.sites, data.text, data.text_mask)
    assert forward.get_total_flops() == forward_flops(config, *asked)
    objective = Objective(model, LossConfig())
    with FlopCounterMode(display=False) as training, sdpa_kernel(SDPBackend.MATH):
        objective(data).loss.backward()
    # The loss itself has r x r products, and attention's backward recomputes scores: neither is in the count.
    assert training.get_total_flops() == pytest.approx(training_flops(config, *asked), rel=0.06)


def test_a_network_of_other_products_has_no_count() -> None:
    with pytest.raises(ValueError, match="no count for architecture"):
        forward_flops(HypernetConfig(weights="none"), SHAPES, 1, 1, 1)


def test_the_weights_of_wan_cost_what_the_binding_costs() -> None:
    """Equations 4, 6 and the queries of 10 are 132, 108 and 47 TFLOP for all 480 sites, once for all effects."""
    config, sites = HypernetConfig(), [(400, 5120, 5120), (40, 13824, 5120), (40, 5120, 13824)]
    one, two = (forward_flops(config, sites, effects, 512, 4096) / 1e12 for effects in (1, 2))
    assert 2 * one - two == pytest.approx(132 + 108 + 47, rel=0.02)
