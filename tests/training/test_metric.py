"""Errors where the base is sensitive: the metric against its definition, and the moments against autograd."""

import math

import pytest
import torch
from torch import nn

from p2e.adapt.grouped import GroupedLoras
from p2e.adapt.moments import SiteMoments
from p2e.adapt.sites import narrowed
from p2e.bases.wan import WAN_BASES
from p2e.config import MetricConfig
from p2e.errors import InputError
from p2e.files import write_safetensors
from p2e.hypernet.losses import update_norms
from p2e.training.metric import read_metric, root

BASE = WAN_BASES["world"]
SITES = BASE.sites[:3]


def moment(size: int, seed: int) -> torch.Tensor:
    x = torch.randn(2 * size, size, generator=torch.Generator().manual_seed(seed)) * torch.linspace(0.1, 3, size)
    return x.T @ x


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("moments") / "moments.safetensors"
    tensors = {}
    for number, site in enumerate(SITES):
        tensors[f"{site.key}.input"] = moment(site.d_in, number)
        tensors[f"{site.key}.output"] = moment(site.d_out, 10 + number)
        tensors[f"{site.key}.energy"] = torch.tensor([4.0**number])
    write_safetensors(path, tensors, {"base": BASE.name})
    return path, tensors


def test_power_one_is_the_curvature(file):
    path, tensors = file
    (metric,) = read_metric(MetricConfig(moments=str(path), power=1, damping=1e-9), BASE.name, [SITES])
    site = SITES[1]
    a, b = torch.randn(3, 2, 4, site.d_in), torch.randn(3, 2, site.d_out, 4)
    seen_a, seen_b = metric.factors(a, b)
    _, energy, _ = update_norms(seen_a, seen_b, seen_a, seen_b)
    c, g = (tensors[f"{site.key}.{side}"].double() for side in ("input", "output"))
    c, g = c / c.diagonal().mean(), g / g.diagonal().mean()
    dw = (b[1, 0] @ a[1, 0]).double()
    assert energy[1, 0].item() == pytest.approx((g @ dw @ c @ dw.T).trace().item(), rel=1e-4)
    assert metric.weight.tolist() == pytest.approx([3 / 21, 12 / 21, 48 / 21])


def test_power_zero_is_the_frobenius_norm(file):
    path, _ = file
    (metric,) = read_metric(MetricConfig(moments=str(path), power=0), BASE.name, [SITES])
    a, b = torch.randn(3, 2, 4, SITES[0].d_in), torch.randn(3, 2, SITES[0].d_out, 4)
    for seen, given in zip(metric.factors(a, b), (a, b), strict=True):
        torch.testing.assert_close(seen, given, atol=1e-5, rtol=1e-5)
    assert metric.weight.tolist() == [1, 1, 1]


def test_damping_leaves_no_direction_free():
    flat = torch.zeros(6, 6)
    flat[0, 0] = 6.0
    assert torch.linalg.eigvalsh(root(flat, 1.0, 0.04)).tolist() == pytest.approx([0.2] * 5 + [math.sqrt(6.04)])


def test_a_file_of_another_base_or_without_a_site_is_refused(file, tmp_path):
    path, _ = file
    config = MetricConfig(moments=str(path))
    with pytest.raises(InputError, match="moments of world, not of wan"):
        read_metric(config, "wan", [SITES])
    with pytest.raises(InputError, match=f"has no moments of {BASE.sites[5].key}"):
        read_metric(config, BASE.name, [BASE.sites[5:6]])
    with pytest.raises(InputError, match="is not there"):
        read_metric(MetricConfig(moments=str(tmp_path / "none")), BASE.name, [SITES])


class Toy(nn.Module):
    """The first block's layers of the base's names, one after the other, so that each sees the one before."""

    def __init__(self, sites) -> None:
        super().__init__()
        self.names = [part.name for site in sites for part in site.parts]
        for name in self.names:
            parent: nn.Module = self
            *folders, child = name.split(".")
            for folder in folders:
                if not hasattr(parent, folder):
                    parent.add_module(folder, nn.Module())
                parent = getattr(parent, folder)
            layer = nn.Linear(sites[0].d_in, sites[0].d_out)
            parent.add_module(child, layer.requires_grad_(False))

    def forward(self, x):
        for name in self.names:
            x = torch.tanh(self.get_submodule(name)(x))
        return x


def test_moments_are_those_that_autograd_gives():
    torch.manual_seed(0)
    base = narrowed(BASE, SITES)
    toy = Toy(SITES)
    clips = [torch.randn(2, 5, SITES[0].d_in) for _ in range(2)]
    moments = SiteMoments(base, torch.device("cpu"))
    for x in clips:
        losses = moments.add(toy, GroupedLoras(base, 2, 2), lambda x=x: toy(x).square().mean((1, 2)))
        assert losses.shape == (2,)
    found = moments.tensors()
    for position, site in enumerate(SITES):
        c, g = torch.zeros(site.d_in, site.d_in), torch.zeros(site.d_out, site.d_out)
        for x in clips:
            y = x
            for name in toy.names[:position]:
                y = torch.tanh(toy.get_submodule(name)(y))
            out = toy.get_submodule(toy.names[position])(y).detach().requires_grad_(True)
            z = torch.tanh(out)
            for name in toy.names[position + 1 :]:
                z = torch.tanh(toy.get_submodule(name)(z))
            z.square().mean((1, 2)).sum().backward()
            tokens, gradients = y.flatten(0, 1), out.grad.flatten(0, 1)
            c += tokens.T @ tokens / len(tokens) / 2
            g += gradients.T @ gradients / len(gradients) / 2
        torch.testing.assert_close(found[f"{site.key}.input"], c, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found[f"{site.key}.output"], g, rtol=1e-4, atol=1e-12)
