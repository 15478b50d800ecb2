"""The Triton kernels, interpreted on a CPU, against the network they stand for."""

import importlib
from types import ModuleType

import pytest
import torch
from tiny import tiny_base
from torch import Tensor

from p2e.config import HypernetConfig
from p2e.hypernet.fused import Decompressor, is_bounded, use_fused
from p2e.hypernet.model import Hypernet, Sites


@pytest.fixture
def kernels() -> ModuleType:
    return importlib.import_module("p2e.hypernet.kernels")


def network(**changes: object) -> Hypernet:
    torch.manual_seed(0)
    config = {"width": 64, "layers": 2, "heads": 4, "latents": 20, "rank": 6, "ffn_ratio": 2}
    model = Hypernet(HypernetConfig.parse(config | changes), tiny_base("toy"))
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval().requires_grad_(False)


def some_sites(model: Hypernet, count: int = 2) -> Sites:
    site = tiny_base("toy").sites[0]
    generator = torch.Generator().manual_seed(1)
    w0 = torch.randn(count, site.d_out, site.d_in, generator=generator)
    return Sites(w0, torch.arange(count) % 2, torch.zeros(count, dtype=torch.long))


def prompts(model: Hypernet, effects: int = 3, positions: int = 130) -> tuple[Tensor, Tensor]:
    """Token states and a mask with prompts of a few and of many positions, one with a gap."""
    generator = torch.Generator().manual_seed(2)
    mask = torch.zeros(effects, positions, dtype=torch.bool)
    mask[0, :3] = True
    mask[1, :] = True
    mask[2, 100:120:3] = True
    return torch.randn(effects, positions, model.text.in_features, generator=generator), mask


def fused(model: Hypernet) -> Hypernet:
    from p2e.hypernet.binding import copy_module

    found = copy_module(model)
    use_fused(found)
    return found


@pytest.mark.parametrize(
    "changes", [{}, {"qk_norm": False}, {"residual": False}, {"heads": 2, "latents": 5, "rank": 16}]
)
def test_a_prediction_is_the_same(changes: dict[str, object]) -> None:
    plain = network(**changes)
    quick, sites, (text, mask) = fused(plain), some_sites(plain), prompts(plain)
    bound, known_bound = quick.bind(sites), plain.bind(sites)
    for found, known in zip(bound, known_bound, strict=True):
        torch.testing.assert_close(found, known, rtol=1e-4, atol=1e-5)
    latents = plain.backbone(bound.latents, text, mask)
    torch.testing.assert_close(quick.backbone(bound.latents, text, mask), latents, rtol=1e-4, atol=1e-5)
    for found, known in zip(Decompressor(plain)(bound, latents), plain.decompressed(bound, latents), strict=True):
        assert found.shape == known.shape and found.is_contiguous()
        torch.testing.assert_close(found, known, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_latents_in_several_chunks(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, qk_norm: bool) -> None:
    """As many latents as do not fit one tile of scores; a tile that ends between rows and columns."""
    monkeypatch.setattr(kernels, "DECOMPRESS", (16, 16, 4, 1))
    plain = network(latents=40, qk_norm=qk_norm)
    sites, (text, mask) = some_sites(plain), prompts(plain)
    bound = plain.bind(sites)
    latents = plain.backbone(bound.latents, text, mask)
    for found, known in zip(Decompressor(plain)(bound, latents), plain.decompressed(bound, latents), strict=True):
        torch.testing.assert_close(found, known, rtol=1e-4, atol=1e-5)


def test_blocks_of_padding_are_not_read(kernels: ModuleType) -> None:
    """What is not allowed may be anything, NaN too, where a whole block of keys is padding."""
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, n, 32, generator=generator) for n in (5, 192, 192))
    mask = torch.zeros(1, 192, dtype=torch.bool)
    mask[:, :40] = True
    known = kernels.attend(q, k[:, :40].contiguous(), v[:, :40].contiguous(), 2)
    k[:, 64:], v[:, 64:] = torch.nan, torch.nan
    torch.testing.assert_close(kernels.attend(q, k, v, 2, mask), known)


def test_large_gains_take_the_maximum_out() -> None:
    """Scores of hundreds, as gains of 20 give, must not overflow."""
    plain = network()
    for name, parameter in plain.named_parameters():
        if "query_norm" in name or "key_norm" in name:
            parameter.fill_(20.0)
    assert not is_bounded(plain.compress.query_norm, plain.compress.key_norm)
    assert is_bounded(network().compress.query_norm, network().compress.key_norm)
    sites, (text, mask) = some_sites(plain), prompts(plain)
    quick = fused(plain)
    bound = quick.bind(sites)
    latents = quick.backbone(bound.latents, text, mask)
    torch.testing.assert_close(latents, plain.backbone(bound.latents, text, mask), rtol=1e-3, atol=1e-4)
    for found, known in zip(Decompressor(plain)(bound, latents), plain.decompressed(bound, latents), strict=True):
        torch.testing.assert_close(found, known, rtol=1e-3, atol=1e-4)


def test_tiles_fit_a_small_gpu(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    like = torch.empty(0, dtype=torch.bfloat16)
    assert kernels.fitting((64, 256, 4, 2), 64, 32, like) == (64, 256, 4, 2)
    monkeypatch.setattr(kernels, "shared_memory", lambda _device: 99 * 1024)
    assert kernels.fitting((64, 256, 4, 2), 64, 32, like) == (64, 128, 4, 2)
    assert kernels.fitting((64, 256, 4, 2), 64, 128, like) == (64, 64, 4, 2)


def test_operators_are_what_a_compiler_takes_them_for(kernels: ModuleType) -> None:
    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    gain = torch.rand(16, generator=generator)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        kernels.attend, (draw(2, 5, 32), draw(2, 7, 32), draw(2, 7, 32), 2, None, gain, gain), test_utils=tests
    )
    bound = draw(3, 12, 32), draw(2, 3, 4, 2, 16), draw(2, 3, 4, 2, 2, 6), draw(3, 7, 6), draw(3, 5, 6)
    torch.library.opcheck(kernels.decompress, (*bound, gain, True), test_utils=tests)
