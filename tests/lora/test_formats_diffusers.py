"""What p2e reads and writes against what diffusers itself loads, layer by layer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from lora_files import (
    RANK,
    assert_same_updates,
    diffusers_biases,
    diffusers_file,
    diffusers_updates,
    down_up_file,
    header,
    original_file,
    our_updates,
    pipeline,
    random_lora,
    random_pairs,
    save,
    small_wan,
)
from safetensors import safe_open

from p2e.bases.base import Base
from p2e.lora.formats import LoraFormat, read_lora, write_lora
from p2e.lora.lora import Lora


def file_of(family: str, base: Base, path: Path) -> tuple[Path, float]:
    """A file of one family that covers every site, and the scale of its updates."""
    pairs = random_pairs(base.sites)
    no_dora = {"use_dora": False, "peft_type": "LORA"}
    modules = [part.name for site in base.sites for part in site.parts]
    settings: dict[str, Any] = {"r": RANK, "lora_alpha": 10, "target_modules": modules, **no_dora}
    match family:
        case "F1":
            return save(path, original_file(pairs)), 1.0
        case "F2":
            return save(path, down_up_file(pairs, alpha=0.5)), 0.5 / RANK
        case "F2 without alpha":
            return save(path, down_up_file(pairs, alpha=None)), 1.0
        case "F3":
            return save(path, down_up_file(pairs, prefix="lora_unet_", alpha=1.0)), 1.0 / RANK
        case "F5":
            return save(path, diffusers_file(base, pairs)), 1.0
        case "F5 with header":
            return save(path, diffusers_file(base, pairs), header(**settings)), 10 / RANK
        case "F5 rsLoRA":
            return save(path, diffusers_file(base, pairs), header(**settings, use_rslora=True)), 10 / RANK**0.5
        case "F1 with header":
            return save(path, original_file(pairs), header(**settings)), 10 / RANK
    raise AssertionError(family)


@pytest.mark.parametrize("image", [True, False], ids=["image branch", "no image branch"])
@pytest.mark.parametrize(
    "family", ["F1", "F2", "F2 without alpha", "F3", "F5", "F5 with header", "F5 rsLoRA", "F1 with header"]
)
def test_a_file_that_diffusers_reads_gives_the_same_updates(family: str, image: bool, tmp_path: Path) -> None:
    base = small_wan(image=image)
    path, scale = file_of(family, base, tmp_path / "x.safetensors")
    pipe = pipeline(base)
    pipe.load_lora_weights(str(path))
    lora = read_lora(path, base)
    assert lora.provenance.family == family[:2]
    assert set(lora.provenance.scales.values()) == {scale}
    assert_same_updates(our_updates(base, lora), diffusers_updates(pipe), count=24 if image else 20)


def test_patterns_in_the_header_give_single_layers_their_own_scale(tmp_path: Path) -> None:
    base = small_wan()
    pairs = random_pairs(base.sites)
    odd = "blocks.1.ffn.0"
    pairs[odd] = random_pairs([base.by_key[odd]], rank=2)[odd]
    settings = {
        "r": RANK, "lora_alpha": 8, "rank_pattern": {"blocks.1.ffn.net.0.proj": 2},
        "alpha_pattern": {"attn1.to_q": 1, "^blocks.0.attn2.to_k": 3},
        "target_modules": [site.parts[0].name for site in base.sites],
    }  # fmt: skip
    path = save(tmp_path / "x.safetensors", diffusers_file(base, pairs), header(**settings))
    pipe = pipeline(base)
    pipe.load_lora_weights(str(path))
    lora = read_lora(path, base)
    assert lora.provenance.scales["blocks.1.self_attn.q"] == 0.25
    assert lora.provenance.scales["blocks.0.cross_attn.k"] == 0.75
    assert lora.provenance.scales["blocks.1.cross_attn.k"] == 2.0
    assert lora.provenance.scales[odd] == 4.0
    assert_same_updates(our_updates(base, lora), diffusers_updates(pipe), count=20)


def test_partial_coverage_and_biases_as_diffusers_has_them(tmp_path: Path) -> None:
    base = small_wan(num_layers=3)
    covered = [site for site in base.sites if site.block == 1 and "self_attn" in site.name]
    tensors = down_up_file(random_pairs(covered), alpha=2.0)
    for site in covered:
        tensors[f"diffusion_model.{site.name}.diff_b"] = torch.randn(site.d_out)
    path = save(tmp_path / "x.safetensors", tensors)
    pipe = pipeline(base)
    pipe.load_lora_weights(str(path))
    lora = read_lora(path, base)
    assert_same_updates(our_updates(base, lora), diffusers_updates(pipe), count=4)
    theirs = diffusers_biases(pipe)
    assert len(lora.biases) == len(theirs) == 4
    for key, bias in lora.biases.items():
        assert torch.equal(bias, theirs[base.by_key[key].parts[0].name])


def test_a_bias_in_peft_form_carries_the_scale_of_its_layer(tmp_path: Path) -> None:
    base = small_wan()
    tensors = diffusers_file(base, random_pairs(base.sites))
    for site in base.sites:
        tensors[f"transformer.{site.parts[0].name}.lora_B.bias"] = torch.randn(site.d_out)
    settings = {"r": RANK, "lora_alpha": 1, "lora_bias": True, "target_modules": [s.parts[0].name for s in base.sites]}
    path = save(tmp_path / "x.safetensors", tensors, header(**settings))
    pipe = pipeline(base)
    pipe.load_lora_weights(str(path))
    lora = read_lora(path, base)
    theirs = diffusers_biases(pipe)
    assert len(lora.biases) == len(theirs) == 20
    for key, bias in lora.biases.items():
        torch.testing.assert_close(bias, theirs[base.by_key[key].parts[0].name], rtol=0, atol=1e-6)


def misread(family: str, base: Base) -> tuple[dict[str, torch.Tensor], float]:
    """Tensors of a file that diffusers does not load, and the scale of its updates."""
    pairs = random_pairs(base.sites)
    attention = {key: pair for key, pair in pairs.items() if "attn" in key}
    match family:
        case "musubi without alpha":
            return down_up_file(pairs, prefix="lora_unet_", alpha=None), 1.0
        case "musubi, attention only":
            return down_up_file(attention, prefix="lora_unet_", alpha=1.0), 1 / RANK
        case "musubi, last block only":
            last = {key: pair for key, pair in pairs.items() if key.startswith("blocks.1.")}
            return down_up_file(last, prefix="lora_unet_", alpha=1.0), 1 / RANK
        case "double underscore":
            return down_up_file(pairs, prefix="lora_unet__", alpha=2.0), 2 / RANK
        case "adapter name inside":
            return original_file(pairs, prefix="", adapter=".default"), 1.0
        case "pipe.dit.":
            return original_file(pairs, prefix="pipe.dit.", adapter=".default"), 1.0
        case "bare original names":
            return original_file(pairs, prefix=""), 1.0
        case "bare diffusers names":
            return diffusers_file(base, pairs, prefix=""), 1.0
        case "PEFT":
            return original_file(pairs, prefix="base_model.model."), 1.0
        case "original names behind transformer.":
            return original_file(pairs, prefix="transformer."), 1.0
    raise AssertionError(family)


@pytest.mark.parametrize(
    ("family", "label", "failure"),
    [
        ("musubi without alpha", "F3", KeyError),
        ("musubi, attention only", "F3", KeyError),
        ("musubi, last block only", "F3", KeyError),
        ("double underscore", "F4", KeyError),
        ("adapter name inside", "F6", None),
        ("pipe.dit.", "F6", None),
        ("bare original names", "F6", None),
        ("bare diffusers names", "F9", None),
        ("PEFT", "F7", None),
        ("original names behind transformer.", "F5", ValueError),
    ],
)
def test_a_file_that_diffusers_refuses_or_silently_drops_is_read_right(
    family: str, label: str, failure: type[Exception] | None, tmp_path: Path
) -> None:
    base = small_wan(image=True)
    tensors, scale = misread(family, base)
    path = save(tmp_path / "x.safetensors", tensors)
    pipe = pipeline(base)
    if failure is None:
        pipe.load_lora_weights(str(path))  # loads without an error, and adapts nothing
    else:
        with pytest.raises(failure):
            pipe.load_lora_weights(str(path))
    assert diffusers_updates(pipe) == {}

    lora = read_lora(path, base)
    assert lora.provenance.family == label
    count = sum(name.endswith(("lora_A.weight", "lora_A.default.weight", "lora_down.weight")) for name in tensors)
    truth = {
        base.by_key[key].parts[0].name: (b @ a) * scale
        for key, (a, b) in random_pairs(base.sites).items()
        if key in lora.factors
    }
    assert_same_updates(our_updates(base, lora), truth, count=count)


def test_alpha_stored_twice_is_applied_once_where_diffusers_applies_it_twice(tmp_path: Path) -> None:
    base = small_wan()
    pairs = random_pairs(base.sites)
    settings = {"r": RANK, "lora_alpha": 2, "target_modules": [site.parts[0].name for site in base.sites]}
    path = save(tmp_path / "x.safetensors", down_up_file(pairs, alpha=2.0), header(**settings))
    pipe = pipeline(base)
    pipe.load_lora_weights(str(path))
    theirs = diffusers_updates(pipe)
    lora = read_lora(path, base)
    assert "lora_adapter_metadata" in lora.provenance.ignored
    assert_same_updates(our_updates(base, lora), {name: 2 * update for name, update in theirs.items()}, count=20)
    for key, (a, b) in pairs.items():
        torch.testing.assert_close(lora.factors[key].delta(), 0.5 * (b @ a))


COVERAGE = {
    "all": lambda name: True,
    "attention of the last block": lambda name: name.startswith("blocks.1.") and "self_attn" in name,
    "one image key": lambda name: name.endswith("k_img") and name.startswith("blocks.0."),
}


@pytest.mark.parametrize("image", [True, False], ids=["image branch", "no image branch"])
@pytest.mark.parametrize("covered", COVERAGE)
@pytest.mark.parametrize("fmt", ["wan", "diffusers", "kohya"])
def test_a_file_of_ours_loads_in_diffusers_with_the_same_updates(
    fmt: LoraFormat, covered: str, image: bool, tmp_path: Path
) -> None:
    base = small_wan(image=image)
    keys = [site.key for site in base.sites if COVERAGE[covered](site.name)]
    if not keys:
        keys = ["blocks.0.cross_attn.k"]
    lora = random_lora(base, {key: 1 + index % 3 for index, key in enumerate(keys)})
    (path,) = write_lora(tmp_path / "x.safetensors", lora, base, fmt, torch.float32, {"prompt": "squish it"})
    pipe = pipeline(base)
    pipe.load_lora_weights(str(path))
    theirs = {name: update for name, update in diffusers_updates(pipe).items() if update.any()}
    assert_same_updates(our_updates(base, lora), theirs, count=len(keys))
    again = read_lora(path, base)
    assert list(again.factors) == keys
    assert {factors.rank for factors in again.factors.values()} == {lora.rank}


@pytest.mark.parametrize("fmt", ["wan", "diffusers", "kohya"])
def test_each_expert_loads_into_its_own_transformer(fmt: LoraFormat, tmp_path: Path) -> None:
    base = small_wan(experts=True)
    keys = [site.key for site in base.sites if site.module == "ffn.0"]
    lora = random_lora(base, dict.fromkeys(keys, 2))
    high, low = write_lora(tmp_path / "x.safetensors", lora, base, fmt, torch.float32)
    pipe = pipeline(base)
    pipe.register_modules(transformer_2=WanTransformer3DModel(**base.diffusers_config))
    pipe.load_lora_weights(str(high))
    pipe.load_lora_weights(str(low), load_into_transformer_2=True)
    for path, transformer in ((high, pipe.transformer), (low, pipe.transformer_2)):
        theirs = {name: update for name, update in diffusers_updates(pipe, transformer).items() if update.any()}
        own = read_lora(path, base)
        assert all(torch.equal(factors.b, lora.factors[key].b) for key, factors in own.factors.items())
        assert_same_updates(our_updates(base, own), theirs, count=2)


@pytest.mark.parametrize("fmt", ["wan", "diffusers"])
def test_biases_of_some_layers_load_in_diffusers(fmt: LoraFormat, tmp_path: Path) -> None:
    base = small_wan()
    keys = [site.key for site in base.sites]
    lora = random_lora(base, dict.fromkeys(keys[:8], 2))
    lora = Lora(lora.base, lora.factors, {key: torch.randn(base.by_key[key].d_out) for key in (keys[0], keys[9])})
    (path,) = write_lora(tmp_path / "x.safetensors", lora, base, fmt, torch.float32)
    pipe = pipeline(base)
    pipe.load_lora_weights(str(path))
    theirs = {name: bias for name, bias in diffusers_biases(pipe).items() if bias.any()}
    assert {base.by_key[key].parts[0].name for key in lora.biases} == set(theirs)
    for key, bias in lora.biases.items():
        assert torch.equal(theirs[base.by_key[key].parts[0].name], bias)
    again = read_lora(path, base)
    assert list(again.factors) == keys[:8]
    assert set(again.biases) == set(lora.biases)


def test_the_default_file_is_what_every_reader_takes(tmp_path: Path) -> None:
    base = small_wan()
    lora = random_lora(base, {site.key: 2 for site in base.sites})
    stale = {"prompt": "melt", "lora_adapter_metadata": json.dumps({"transformer.r": 9}), "ss_network_alpha": "1"}
    (path,) = write_lora(tmp_path / "x.safetensors", lora, base, metadata=stale)
    pipe = pipeline(base)
    pipe.load_lora_weights(str(path))
    assert len(diffusers_updates(pipe)) == 20
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "prompt": "melt", "p2e.base": "small-wan"}
        names = set(file.keys())
        assert names == {f"diffusion_model.{s.name}.lora_{x}.weight" for s in base.sites for x in "AB"}
        assert {file.get_tensor(name).dtype for name in names} == {torch.bfloat16}
    # The type's rounding apart, the update survives.
    for key, factors in read_lora(path, base).factors.items():
        torch.testing.assert_close(factors.delta(), lora.factors[key].delta(), rtol=0.02, atol=0.05)
