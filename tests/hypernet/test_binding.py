"""Predictions from a binding are those of the plain network, wherever its queries are kept."""

import os
from pathlib import Path

import pytest
import torch
from tiny import tiny_base
from tiny_training import TinyRun, tiny_weights
from torch import Tensor

from p2e.config import BindingConfig
from p2e.errors import FormatError, InputError
from p2e.float8 import Float8Linear, to_float8
from p2e.hypernet.binding import Binding, bind
from p2e.hypernet.binding_files import binding_name
from p2e.hypernet.checkpoint import Checkpoint, load_checkpoint
from p2e.hypernet.pieces import piece_sites, query_bytes
from p2e.predict import predict_factors, predict_loras
from p2e.text import TextStates

PROMPTS = ["melt it now", "and fly", "the picture will glow and zoom"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    tiny = TinyRun(tmp_path_factory.mktemp("tiny"))
    for name, changes in {"plain": {}, "no_residual": {"residual": False}, "svd": {"weights": "truncated_svd"},
                          "static": {"weights": "none"}, "ensemble": {"ensemble": True},
                          "wide": {"heads": 2}}.items():  # fmt: skip
        tiny.trainer(name, steps=2, hypernet=changes).run()
    return tiny


def opened(tiny: TinyRun, name: str = "plain", dtype: torch.dtype = torch.float32) -> Checkpoint:
    return load_checkpoint(tiny.folder / name, base=tiny.base, dtype=dtype)


def predicted(
    tiny: TinyRun, checkpoint: Checkpoint, binding: Binding | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    states = checkpoint.model.text_input(tiny.encoder.encode(PROMPTS))
    found = predict_factors(checkpoint, tiny.weights, states, binding)
    return {site.key: (a[i], b[i]) for sites, a, b in found for i, site in enumerate(sites)}


def error(found: dict[str, tuple[Tensor, Tensor]], known: dict[str, tuple[Tensor, Tensor]]) -> float:
    """Largest relative error of a factor."""
    assert found.keys() == known.keys()
    pairs = [(x.double(), y.double()) for key in known for x, y in zip(found[key], known[key], strict=True)]
    return max(float((x - y).norm() / y.norm()) for x, y in pairs)


SMALL = {"piece_tokens": 200, "latent_tokens": 20}
BUDGETS = {
    "device": {},
    "host": {"device_gb": 0},
    "nowhere": {"device_gb": 0, "host_gb": 0},
}


@pytest.mark.parametrize("kept", BUDGETS)
@pytest.mark.parametrize("name", ["plain", "no_residual", "svd", "static"])
def test_float32_agrees_with_the_plain_network(tiny: TinyRun, name: str, kept: str) -> None:
    checkpoint = opened(tiny, name)
    binding = bind(checkpoint, tiny.weights, BindingConfig.parse(SMALL | BUDGETS[kept] | {"effects_at_once": 2}))
    assert {piece.kept for piece in binding.pieces} == {kept}
    known = predicted(tiny, checkpoint)
    assert error(predicted(tiny, checkpoint, binding), known) < 1e-5
    assert error(predicted(tiny, checkpoint, binding), known) < 1e-5  # nothing is used up


def test_bfloat16_is_no_worse_than_the_plain_network(tiny: TinyRun) -> None:
    true = predicted(tiny, opened(tiny, dtype=torch.float64))
    low = opened(tiny, dtype=torch.bfloat16)
    plain, bound = predicted(tiny, low), predicted(tiny, low, bind(low, tiny.weights, BindingConfig.parse(SMALL)))
    assert 1e-4 < error(plain, true) < 0.1
    assert error(bound, true) <= 1.05 * error(plain, true)


def test_a_budget_is_kept(tiny: TinyRun) -> None:
    checkpoint = opened(tiny)
    plan = list(piece_sites(checkpoint, 200))
    sizes = [query_bytes(checkpoint, sites) for sites in plan]
    budget = {"device_gb": (sizes[0] + 1) / 1e9, "host_gb": (sizes[1] + sizes[2] + 1) / 1e9}
    binding = bind(checkpoint, tiny.weights, BindingConfig.parse(SMALL | budget))
    nbytes = binding.nbytes
    assert nbytes["device"] <= budget["device_gb"] * 1e9 and nbytes["host"] <= budget["host_gb"] * 1e9
    assert sum(nbytes.values()) == sum(sizes) and min(nbytes.values()) > 0
    for piece in binding.pieces:
        held = piece.bound.queries.numel() * piece.bound.queries.itemsize
        assert held == (0 if piece.kept == "nowhere" else query_bytes(checkpoint, piece.sites))
    assert error(predicted(tiny, checkpoint, binding), predicted(tiny, checkpoint)) < 1e-5


def test_pieces_hold_all_trained_sites_once(tiny: TinyRun) -> None:
    checkpoint = opened(tiny)
    for tokens in (1, 200, 10**9):
        pieces = list(piece_sites(checkpoint, tokens))
        assert sorted(site.key for sites in pieces for site in sites) == sorted(checkpoint.scales)
        for sites in pieces:
            assert len({(site.d_out, site.d_in) for site in sites}) == 1
            assert len(sites) == 1 or sum(site.d_out + site.d_in for site in sites) <= tokens


def test_loras_from_a_binding_are_the_same(tiny: TinyRun) -> None:
    checkpoint = opened(tiny)
    binding = bind(checkpoint, tiny.weights)
    plain = predict_loras(checkpoint, tiny.weights, PROMPTS, tiny.encoder, strength=0.5)
    bound = predict_loras(checkpoint, tiny.weights, PROMPTS, tiny.encoder, strength=0.5, binding=binding)
    for x, y in zip(plain, bound, strict=True):
        assert list(x.factors) == list(y.factors) and x.provenance == y.provenance
        found, known = ({key: (f.a, f.b) for key, f in lora.factors.items()} for lora in (y, x))
        assert error(found, known) < 1e-5


def test_an_ensemble_is_refused(tiny: TinyRun) -> None:
    with pytest.raises(InputError, match="only the network that predicts each site by itself"):
        bind(opened(tiny, "ensemble"), tiny.weights)


def test_a_kept_binding_is_read_and_not_computed(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, config = opened(tiny), BindingConfig.parse(SMALL | {"device_gb": 0, "host_gb": 0})
    first = bind(checkpoint, tiny.weights, config, tmp_path)
    known = predicted(tiny, checkpoint, first)
    monkeypatch.setattr(type(checkpoint.model), "bind", None)
    again = bind(checkpoint, tiny.weights, BindingConfig.parse(SMALL), tmp_path)  # kept elsewhere, read from the same
    assert {piece.kept for piece in again.pieces} == {"device"}
    assert error(predicted(tiny, checkpoint, again), known) < 1e-6


def test_another_checkpoint_base_or_type_has_another_binding(tiny: TinyRun) -> None:
    names = {binding_name(opened(tiny), tiny.weights), binding_name(opened(tiny, "svd"), tiny.weights),
             binding_name(opened(tiny, dtype=torch.bfloat16), tiny.weights),
             binding_name(opened(tiny), tiny_weights(tiny.folder / "other", tiny.base, seed=5))}  # fmt: skip
    assert len(names) == 4


def test_a_damaged_or_unfinished_binding_is_not_used(tiny: TinyRun, tmp_path: Path) -> None:
    checkpoint, config = opened(tiny), BindingConfig.parse(SMALL)
    bind(checkpoint, tiny.weights, config, tmp_path)
    folder = tmp_path / binding_name(checkpoint, tiny.weights)
    piece = next(folder.glob("*.safetensors"))
    os.truncate(piece, piece.stat().st_size - 8)
    with pytest.raises(FormatError, match=r"truncated.*; remove .* and bind again"):
        bind(checkpoint, tiny.weights, config, tmp_path)
    (folder / "index.json").unlink()  # as one that was cut off: made anew
    binding = bind(checkpoint, tiny.weights, config, tmp_path)
    assert error(predicted(tiny, checkpoint, binding), predicted(tiny, checkpoint)) < 1e-5
    bind(checkpoint, tiny.weights, config, tmp_path)


def test_fp8_is_near_and_off_by_default(tiny: TinyRun) -> None:
    checkpoint = opened(tiny)
    known = predicted(tiny, checkpoint)
    assert bind(checkpoint, tiny.weights).config.fp8 is False
    low = predicted(tiny, checkpoint, bind(checkpoint, tiny.weights, BindingConfig(fp8=True)))
    assert 1e-4 < error(low, known) < 0.1
    assert error(predicted(tiny, checkpoint), known) == 0  # the checkpoint itself is as it was


def test_fp8_products_are_those_of_rounded_factors() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(48, 64, bias=False)
    x = torch.randn(3, 5, 48) * torch.logspace(-3, 3, 5)[:, None]  # rows of very different size
    low = Float8Linear(layer)(x)
    known = layer(x).detach()
    assert float((low - known).norm(dim=-1).div(known.norm(dim=-1)).max()) < 0.05
    assert not torch.equal(low, known)
    assert torch.equal(Float8Linear(layer)(torch.zeros(2, 48)), torch.zeros(2, 64))
    weight = layer.weight.detach()
    rounded, scale = to_float8(weight)
    assert float((rounded.float() * scale - weight).abs().max() / weight.abs().max()) < 2**-4


def test_another_prompt_compiles_nothing(tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: real(*args, **options | {"backend": "eager"}))
    checkpoint = opened(tiny)
    states = tiny.encoder.encode([*PROMPTS, "a", "spin the picture until it will ripple"])
    binding = bind(checkpoint, tiny.weights, BindingConfig.parse(SMALL | {"compile": True, "effects_at_once": 1}))
    torch._dynamo.reset()
    found = [list(binding.predict(states[[0]]))]
    with torch._dynamo.config.patch(error_on_recompile=True):
        found += [list(binding.predict(states[[i]])) for i in range(1, len(states.mask))]
    torch._dynamo.reset()
    for i, some in enumerate(found):
        for (sites, a, b), (known_sites, known_a, known_b) in zip(
            some, bind(checkpoint, tiny.weights, BindingConfig.parse(SMALL)).predict(states[[i]]), strict=True
        ):
            assert sites == known_sites
            torch.testing.assert_close(a, known_a, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(b, known_b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compile", [False, True])
def test_kernels_predict_the_same(tiny: TinyRun, monkeypatch: pytest.MonkeyPatch, compile: bool) -> None:
    """As on a GPU, but interpreted; compiled, a prompt of another length compiles nothing."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: real(*args, **options | {"backend": "eager"}))
    checkpoint = opened(tiny, "wide")
    states = checkpoint.model.text_input(tiny.encoder.encode(PROMPTS))
    longer = TextStates(states.states[:2].repeat(1, 40, 1), states.mask[:2].repeat(1, 40))
    plain = bind(checkpoint, tiny.weights, BindingConfig.parse(SMALL))
    monkeypatch.setattr("p2e.hypernet.binding.can_fuse", lambda _checkpoint: True)
    binding = bind(checkpoint, tiny.weights, BindingConfig.parse(SMALL | {"compile": compile, "effects_at_once": 2}))
    assert binding.fused and not plain.fused
    torch._dynamo.reset()
    list(binding.predict(states[:2]))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for text in (states[1:], longer):
            for (sites, a, b), (known, known_a, known_b) in zip(
                binding.predict(text), plain.predict(text), strict=True
            ):
                assert sites == known
                torch.testing.assert_close(a, known_a, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(b, known_b, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_weights_of_another_base_are_refused(tiny: TinyRun, tmp_path: Path) -> None:
    other = tiny_base("toy", layers=1)
    with pytest.raises(InputError, match="give the base that it was trained on"):
        bind(opened(tiny), tiny_weights(tmp_path, other))
