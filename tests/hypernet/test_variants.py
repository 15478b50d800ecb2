"""Every ablation and the baseline: a configuration key away, trained by the same step, predicting by the same call."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_training import SMALL, TinyRun

from p2e.config import HypernetConfig, TrainConfig
from p2e.errors import ConfigError
from p2e.hypernet.checkpoint import load_checkpoint
from p2e.hypernet.hyperdreambooth import HyperDreamBooth
from p2e.hypernet.model import Hypernet, Sites
from p2e.hypernet.variants import Ensemble, FactorTokens, StaticHypernet, build_hypernet
from p2e.predict import predict_loras

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "no_weights": {"weights": "none"},
    "truncated_svd": {"weights": "truncated_svd"},
    "noise": {"weights": "noise"},
    "ensemble": {"ensemble": True, "width": 16},
    "across_sites": {"across_sites": True},
    "more_latents": {"latents": 9},
    "hyperdreambooth": {"architecture": "hyperdreambooth", "iterations": 2},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return TinyRun(tmp_path_factory.mktemp("variants"))


def network(tiny: TinyRun, **changes: Any) -> Any:
    torch.manual_seed(0)
    return build_hypernet(HypernetConfig.parse(SMALL | changes), tiny.base)


def square_sites(tiny: TinyRun, model: Any, count: int = 4) -> Sites:
    sites = tiny.base.shapes[32, 32][:: 16 // count]
    block = torch.tensor([site.block for site in sites])
    module = torch.tensor([tiny.base.modules.index(site.module) for site in sites])
    w0 = torch.stack([tiny.weights.read(site) for site in sites])
    return Sites(model.prepare(w0, block, module), block, module)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_trains_saves_and_predicts(tiny: TinyRun, name: str) -> None:
    trainer = tiny.trainer(name, hypernet=VARIANTS[name], steps=3)
    start = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    folder = trainer.run()
    moved = [key for key, value in trainer.model.state_dict().items() if not torch.equal(value, start[key])]
    assert len(moved) > 0.9 * len(start)
    checkpoint = load_checkpoint(folder, base=tiny.base)
    red, blue = predict_loras(checkpoint, tiny.weights, ["the picture turns red", "all is blue"], tiny.encoder)
    assert list(red.factors) == [site.key for site in tiny.base.sites]
    for site in tiny.base.sites:
        a, b = red.factors[site.key]
        assert a.shape == (4, site.d_in) and b.shape == (site.d_out, 4)
        assert bool(torch.isfinite(a).all() and torch.isfinite(b).all())
        assert not torch.equal(a, blue.factors[site.key].a)  # the prompt matters


def test_configurations_build_what_they_name(tiny: TinyRun) -> None:
    kinds = {name: type(network(tiny, **changes)) for name, changes in VARIANTS.items()}
    assert kinds == {
        "paper": Hypernet, "no_weights": StaticHypernet, "truncated_svd": Hypernet, "noise": Hypernet,
        "ensemble": Ensemble, "across_sites": Hypernet, "more_latents": Hypernet, "hyperdreambooth": HyperDreamBooth,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["no_weights", "noise", "hyperdreambooth"])
def test_nothing_of_w0_reaches_these(tiny: TinyRun, name: str) -> None:
    model = network(tiny, **VARIANTS[name])
    states = tiny.encoder.encode(["melt it"])
    sites = square_sites(tiny, model)
    other = Sites(model.prepare(torch.randn(4, 32, 32), sites.block, sites.module), sites.block, sites.module)
    one = model(*sites, states.states, states.mask)
    two = model(*other, states.states, states.mask)
    assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))


def test_noise_is_a_name_of_the_site(tiny: TinyRun) -> None:
    model = network(tiny, weights="noise")
    noise, again = square_sites(tiny, model).weights, square_sites(tiny, model).weights
    assert isinstance(noise, torch.Tensor) and isinstance(again, torch.Tensor)
    assert torch.equal(noise, again)
    assert float((noise[0] - noise[1]).abs().mean()) > 0.5


def test_truncated_svd_keeps_the_leading_directions(tiny: TinyRun) -> None:
    model = network(tiny, weights="truncated_svd", svd_rank=5)
    assert isinstance(model.tokens, FactorTokens) and model.tokens.rank == 5
    sites = tiny.base.shapes[64, 32]
    w0 = torch.stack([tiny.weights.read(site) for site in sites])
    index = torch.zeros(len(sites), dtype=torch.int64)
    u, v = model.prepare(w0, index, index)
    assert u.shape == (2, 64, 5) and v.shape == (2, 32, 5)
    torch.testing.assert_close(u.mT @ u, torch.eye(5).expand(2, -1, -1), atol=1e-5, rtol=0)
    strength = torch.diagonal(u.mT @ w0 @ v, dim1=-2, dim2=-1)  # U^T W V is diagonal: the singular values
    torch.testing.assert_close(strength, torch.linalg.svdvals(w0)[:, :5], atol=1e-5, rtol=1e-5)
    flipped_u, _ = model.prepare(-w0, index, index)
    torch.testing.assert_close(flipped_u, u, atol=1e-4, rtol=0)
    assert network(tiny, weights="truncated_svd").tokens.rank == 16  # half of the smallest width


def test_members_of_an_ensemble_are_independent(tiny: TinyRun) -> None:
    model = network(tiny, ensemble=True)
    assert isinstance(model, Ensemble) and len(model.members) == 2
    states = tiny.encoder.encode(["melt it", "and fly"])
    sites = square_sites(tiny, model)
    order = torch.tensor([3, 0, 2, 1])
    weights = sites.weights
    assert isinstance(weights, torch.Tensor)
    a, _ = model(*sites, states.states, states.mask)
    a_moved, _ = model(weights[order], sites.block[order], sites.module[order], states.states, states.mask)
    torch.testing.assert_close(a_moved, a[order])
    with torch.no_grad():
        for parameter in model.member(1).parameters():
            parameter.zero_()
    changed, _ = model(*sites, states.states, states.mask)
    first = sites.block == 0
    assert torch.equal(changed[first], a[first]) and bool((changed[~first] == 0).all())


def test_the_baseline_refines_its_own_output(tiny: TinyRun) -> None:
    states = tiny.encoder.encode(["melt it"])
    found = []
    for iterations in (1, 2, 3):
        model = network(tiny, architecture="hyperdreambooth", iterations=iterations)
        found.append(model(*square_sites(tiny, model), states.states, states.mask)[0])
    assert float((found[0] - found[1]).detach().norm()) > 0
    assert float((found[1] - found[2]).detach().norm()) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 30}, "heads 4 must divide width 30"),
        ({"width": 36, "heads": 6, "latents": 0}, "latents"),
        ({"ensemble": True, "across_sites": True}, "contradict"),
        ({"architecture": "hyperdreambooth", "weights": "none"}, "reads no weights"),
        ({"weight": "none"}, "weight: Extra inputs"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HypernetConfig.parse(SMALL | changes)


def test_an_ensemble_fits_no_cuda_graph() -> None:
    values = {"library": "x", "output": "y", "cuda_graph": True, "hypernet": {"ensemble": True}}
    with pytest.raises(ValidationError, match="set cuda_graph: false"):
        TrainConfig.model_validate(values)


def test_raw_targets_go_through_to_the_checkpoint(tiny: TinyRun, tmp_path: Path) -> None:
    from p2e.lora.manifest import Manifest
    from p2e.lora.prepare import prepare_library
    from p2e.training.loop import Trainer

    manifest = Manifest.load(tiny.folder / "library" / "manifest.yaml")
    raw = prepare_library(manifest, tmp_path / "raw", base=tiny.base, rank=4, targets="raw")
    config = tiny.config("raw", steps=1)
    folder = Trainer(config, tiny.base, tiny.weights, raw, tiny.encoder).run()
    assert load_checkpoint(folder, base=tiny.base).targets == "raw"
