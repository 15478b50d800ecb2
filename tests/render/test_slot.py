"""The LoRA slot: exact updates, exact clearing, swaps that neither recompile nor touch the base."""

import hashlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TEXT_DIM, Z_CHANNELS, tiny_base, tiny_lora, tiny_transformer
from torch import Tensor, nn

from p2e.bases.base import Base, Part, Site
from p2e.errors import InputError
from p2e.lora.lora import Factors, Lora
from p2e.render.slot import LoraSlot


def inputs() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    return {
        "hidden_states": torch.randn(1, 2 * Z_CHANNELS + 4, 2, 4, 4, generator=generator),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 8, TEXT_DIM, generator=generator),
        "return_dict": False,
    }


@torch.no_grad()
def run(model: Any) -> Tensor:
    return model(**inputs())[0]


def hashes(module: nn.Module) -> dict[str, str]:
    return {k: hashlib.sha256(v.numpy().tobytes()).hexdigest() for k, v in module.state_dict().items()}


@torch.no_grad()
def merged(lora: Lora, base: Base, strength: float = 1.0) -> Any:
    """A fresh transformer with the update added to its weights."""
    model = tiny_transformer(base)
    for site in base.sites:
        row = 0
        for part in site.parts:
            layer = model.get_submodule(part.name)
            if site.key in lora.factors:
                layer.weight += strength * lora.factors[site.key].delta()[row : row + part.rows]
            if site.key in lora.biases:
                layer.bias += strength * lora.biases[site.key][row : row + part.rows]
            row += part.rows
    return model


def test_output_equals_merged_weights() -> None:
    base = tiny_base()
    model = tiny_transformer(base)
    plain = run(model)
    slot = LoraSlot(model, base, max_rank=8)
    assert torch.equal(run(model), plain)
    lora = tiny_lora(base, rank=4)
    report = slot.load(lora)
    assert (report.sites, report.rank, report.biases) == (20, 4, 0)
    assert (run(model) - plain).abs().max() > 1e-2
    torch.testing.assert_close(run(model), run(merged(lora, base)), atol=1e-5, rtol=0)


def test_biases_are_applied_with_the_strength() -> None:
    base = tiny_base()
    site = base.sites[3]
    biases = {site.key: torch.randn(site.d_out, generator=torch.Generator().manual_seed(1))}
    for lora in (tiny_lora(base, biases=biases), Lora(base.name, {}, biases)):
        model = tiny_transformer(base)
        report = LoraSlot(model, base, max_rank=4).load(lora, strength=0.5)
        assert report.biases == 1
        torch.testing.assert_close(run(model), run(merged(lora, base, 0.5)), atol=1e-5, rtol=0)


def test_base_is_bit_identical_after_swaps_and_the_cleared_slot_is_invisible() -> None:
    base = tiny_base()
    model = tiny_transformer(base)
    before, plain, names = hashes(model), run(model), [name for name, _ in model.named_parameters()]
    slot = LoraSlot(model, base, max_rank=8)
    for rank in (8, 2, 5):
        slot.load(tiny_lora(base, rank=rank, seed=rank))
        run(model)
    assert hashes(model) == before  # the slot's buffers are not part of the state either
    slot.clear()
    assert torch.equal(run(model), plain)
    slot.load(tiny_lora(base))
    slot.set_strength(0.0)
    assert torch.equal(run(model), plain)
    slot.load(tiny_lora(base))
    slot.remove()
    assert torch.equal(run(model), plain)
    assert [name for name, _ in model.named_parameters()] == names
    assert not any("lora" in name for name, _ in model.named_modules())


def test_a_swap_leaves_nothing_of_the_last_lora() -> None:
    base = tiny_base()
    model = tiny_transformer(base)
    slot = LoraSlot(model, base, max_rank=8)
    site = base.sites[0]
    slot.load(tiny_lora(base, rank=8, seed=1, biases={site.key: torch.ones(site.d_out)}), strength=2.0)
    attention = tiny_lora(base, rank=2, seed=2, covers=lambda module: module.startswith("self_attn"))
    assert slot.load(attention).sites == 8
    swapped = run(model)
    fresh = tiny_transformer(base)
    LoraSlot(fresh, base, max_rank=8).load(attention)
    assert torch.equal(swapped, run(fresh))


def test_no_recompilation_on_swap_strength_or_clear() -> None:
    base = tiny_base()
    model = tiny_transformer(base)
    plain = run(model)
    slot = LoraSlot(model, base, max_rank=8)
    eager = {}
    loras = [tiny_lora(base, rank=rank, seed=rank) for rank in (4, 8, 1)]
    loras.append(tiny_lora(base, rank=2, covers=lambda module: module == "self_attn.q"))
    for index, lora in enumerate(loras):
        slot.load(lora, strength=0.7)
        eager[index] = run(model)
    slot.clear()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(run(compiled), plain, atol=1e-6, rtol=0)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for index, lora in enumerate(loras):
            slot.load(lora)
            slot.set_strength(0.7)
            torch.testing.assert_close(run(compiled), eager[index], atol=1e-5, rtol=0)
        slot.clear()
        torch.testing.assert_close(run(compiled), plain, atol=1e-6, rtol=0)
    torch._dynamo.reset()


def fused(base: Base) -> Base:
    """The same base with q, k and v of self-attention as one site, as the original HunyuanVideo has them."""
    sites: list[Site] = []
    for block in range(base.num_blocks):
        part = tuple(Part(f"blocks.{block}.attn1.to_{name}", 32) for name in "qkv")
        sites.append(Site(len(sites), block, "self_attn.qkv", 96, 32, f"blocks.{block}.self_attn.qkv", part))
        ffn = base.by_key[f"blocks.{block}.ffn.0"]
        sites.append(Site(len(sites), block, "ffn.0", ffn.d_out, ffn.d_in, ffn.name, ffn.parts))
    return Base(base.name, base.family, tuple(sites), base.diffusers_class, base.diffusers_config, text_dim=TEXT_DIM)


def test_fused_sites_split_over_their_parts() -> None:
    base = fused(tiny_base())
    model = tiny_transformer(base)
    key = base.sites[0].key
    lora = tiny_lora(base, biases={key: torch.randn(96, generator=torch.Generator().manual_seed(1))})
    assert LoraSlot(model, base, max_rank=4).load(lora).sites == 4
    torch.testing.assert_close(run(model), run(merged(lora, base)), atol=1e-5, rtol=0)


def test_experts_get_their_own_updates() -> None:
    sites = [
        Site(index, index, "self_attn.q", 32, 32, "blocks.0.self_attn.q", (Part("blocks.0.attn1.to_q", 32),), expert)
        for index, expert in enumerate(("high_noise", "low_noise"))
    ]
    base = tiny_base()
    subfolders: dict[str | None, str] = {"high_noise": "transformer", "low_noise": "transformer_2"}
    two = Base("two", "wan", tuple(sites), base.diffusers_class, base.diffusers_config, subfolders)
    high, low = tiny_transformer(base, 0), tiny_transformer(base, 1)
    plain_high, plain_low = run(high), run(low)
    slot = LoraSlot({"high_noise": high, "low_noise": low}, two, max_rank=4)
    only_low = Lora("two", {"low_noise.blocks.0.self_attn.q": Factors(torch.randn(2, 32), torch.randn(32, 2))})
    assert slot.load(only_low).sites == 1
    assert torch.equal(run(high), plain_high)
    assert not torch.equal(run(low), plain_low)
    with pytest.raises(InputError, match="low_noise is missing"):
        LoraSlot({"high_noise": tiny_transformer(base)}, two, max_rank=4)


@settings(max_examples=15, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    weights=st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3),
    strength=st.floats(-2, 2, width=32),
)
def test_mixed_is_the_weighted_sum_of_updates(ranks: list[int], weights: list[float], strength: float) -> None:
    layer = nn.Module()
    layer.add_module("q", nn.Linear(6, 5))
    site = Site(0, 0, "q", 5, 6, "q", (Part("q", 5),))
    base = Base("one", "wan", (site,), "", {})
    generator = torch.Generator().manual_seed(sum(ranks))
    loras = [
        Lora(
            "one",
            {"q": Factors(torch.randn(r, 6, generator=generator), torch.randn(5, r, generator=generator))},
            {"q": torch.randn(5, generator=generator)},
        )
        for r in ranks
    ]
    pairs = list(zip(loras, weights, strict=False))
    slot = LoraSlot(layer, base, max_rank=12)
    x = torch.randn(3, 6, generator=generator)
    linear = layer.get_submodule("q")
    with torch.no_grad():
        plain = linear(x)
        assert slot.load_mixed(pairs, strength).rank == sum(ranks)
        delta = sum((lora.factors["q"].delta() * w for lora, w in pairs), torch.zeros(5, 6))
        bias = sum((lora.biases["q"] * w for lora, w in pairs), torch.zeros(5))
        torch.testing.assert_close(linear(x), plain + strength * (x @ delta.T + bias), atol=1e-4, rtol=1e-4)


def test_bad_loras_are_refused_and_leave_the_slot_as_it_was() -> None:
    base = tiny_base()
    model = tiny_transformer(base)
    slot = LoraSlot(model, base, max_rank=4)
    slot.load(tiny_lora(base))
    loaded = run(model)
    key = base.sites[0].key
    bad = [
        (tiny_lora(base, rank=5), "rank 5 does not fit the LoRA slot of rank 4"),
        (Lora("other", tiny_lora(base).factors), "made for other"),
        (Lora(base.name, {}), "adapts no site"),
        (Lora(base.name, {"blocks.9.self_attn.q": Factors(torch.zeros(1, 32), torch.zeros(32, 1))}), "is no site"),
        (Lora(base.name, {key: Factors(torch.zeros(1, 31), torch.zeros(32, 1))}), r"A \[1, 31\]"),
        (Lora(base.name, {key: Factors(torch.zeros(2, 32), torch.zeros(32, 1))}), r"A \[2, 32\]"),
        (Lora(base.name, {}, {key: torch.zeros(31)}), "the bias of"),
    ]
    for lora, message in bad:
        with pytest.raises(InputError, match=message):
            slot.load(lora)
    with pytest.raises(InputError, match="rank 6 does not fit"):
        slot.load_mixed([(tiny_lora(base, rank=3), 1.0), (tiny_lora(base, rank=3), 1.0)])
    with pytest.raises(InputError, match="strength of nan"):
        slot.load(tiny_lora(base, seed=5), strength=float("nan"))
    assert torch.equal(run(model), loaded)


def test_wrong_transformer_and_second_slot_are_refused() -> None:
    model = tiny_transformer()
    with pytest.raises(InputError, match=r"no layer blocks\.2"):
        LoraSlot(model, tiny_base(layers=3), max_rank=4)
    with pytest.raises(InputError, match="is it another base"):
        LoraSlot(model, tiny_base(ffn=128), max_rank=4)
    with pytest.raises(InputError, match="max_rank of 1 or more"):
        LoraSlot(model, tiny_base(), max_rank=0)
    LoraSlot(model, tiny_base(), max_rank=4)
    with pytest.raises(InputError, match="already has a LoRA slot"):
        LoraSlot(model, tiny_base(), max_rank=4)
