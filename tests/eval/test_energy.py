"""Energy of updates in the singular basis of a weight: known updates, and that of an update without preference."""

import pytest
import torch

from eval.world.energy import SHARES, library_energies, random_energies, site_energies
from p2e.bases import WeightReader, world_base_folder
from p2e.bases.wan import WAN_BASES
from p2e.lora.formats import read_lora
from p2e.lora.lora import Factors

HALF = SHARES.index(0.5)


def weight(d_out: int = 24, d_in: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    w0 = torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return w0, *torch.linalg.svd(w0, full_matrices=False)


def test_against_the_projection_itself():
    w0, u, s, vh = weight()
    generator = torch.Generator().manual_seed(1)
    factors = Factors(torch.randn(3, 16, generator=generator), torch.randn(24, 3, generator=generator))
    found = site_energies(w0, [factors])
    update = factors.delta().double()
    for i in (HALF, 16, len(SHARES) - 1):
        k = round(SHARES[i] * 16)
        left, right = u[:, :k] @ u[:, :k].T, vh[:k].T @ vh[:k]
        for kind, projected in (("left", left @ update), ("right", update @ right), ("both", left @ update @ right)):
            expected = projected.square().sum() / update.square().sum()
            assert float(found[kind][0, i]) == pytest.approx(float(expected), abs=1e-6), (kind, k)
        assert float(found["base"][0, i]) == pytest.approx(float(s[:k].square().sum() / s.square().sum()))


def test_an_update_in_the_leading_directions_is_seen_there():
    w0, u, _, vh = weight()
    leading = site_energies(w0, [Factors(vh[:2], u[:, :2])])
    trailing = site_energies(w0, [Factors(vh[-2:], u[:, -2:])])
    assert float(leading["both"][0, HALF]) == pytest.approx(1) and float(trailing["both"][0, HALF]) == pytest.approx(0)
    # On one side only: the input directions lead, the output directions trail.
    mixed = site_energies(w0, [Factors(vh[:2], u[:, -2:])])
    assert [float(mixed[kind][0, HALF]) for kind in ("left", "right", "both")] == pytest.approx([0, 1, 0], abs=1e-9)


def test_random_updates_have_the_energy_that_is_expected():
    w0 = weight()[0]
    generator = torch.Generator().manual_seed(2)
    many = [
        Factors(torch.randn(4, 16, generator=generator), torch.randn(24, 4, generator=generator)) for _ in range(400)
    ]
    found, expected = site_energies(w0, many), random_energies(24, 16)
    for kind, curve in expected.items():
        torch.testing.assert_close(found[kind].mean(0), curve, atol=0.02, rtol=0)


def test_zero_updates_are_left_out():
    found = site_energies(weight()[0], [Factors(torch.zeros(2, 16), torch.zeros(24, 2))])
    assert set(found) == {"base"}


def test_the_shipped_library():
    """Every pair of a LoRA and a site counts once, and curves rise from nothing."""
    base, folder = WAN_BASES["world"], world_base_folder()
    paths = sorted((folder.parent / "library" / "loras").glob("*.safetensors"))[:2]
    loras = [read_lora(path, base) for path in paths]
    found = library_energies(WeightReader(base, folder), loras)
    assert found.pairs == sum(len(lora.factors) for lora in loras)
    for kind in ("base", "left", "right", "both"):
        curve = found.mean[kind]
        assert curve[0] == 0 and bool((curve.diff() >= 0).all()) and curve[-1] <= 1 + 1e-6
    assert float(found.mean["base"][-1]) == pytest.approx(1)
    assert set(found.modules) == set(base.modules)
