"""Reading and writing LoRA files: round trips, scales, coverage, experts, and the base told from the layers."""

import json
import tempfile
from pathlib import Path

import fsspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_files import RANK, down_up_file, original_file, random_lora, random_pairs, save, small_wan

from p2e.bases import get_base
from p2e.errors import FormatError, InputError
from p2e.lora.formats import LoraFormat, detect_lora_base, read_lora, write_lora
from p2e.lora.lora import Factors, Lora

IMAGE_BASE = small_wan(image=True)


@settings(max_examples=25, deadline=None)
@given(
    ranks=st.dictionaries(st.sampled_from([site.key for site in IMAGE_BASE.sites]), st.integers(1, 5), min_size=1),
    fmt=st.sampled_from(["wan", "diffusers", "kohya"]),
    seed=st.integers(0, 1000),
)
def test_writing_and_reading_keeps_the_update_and_the_coverage(
    ranks: dict[str, int], fmt: LoraFormat, seed: int
) -> None:
    lora = random_lora(IMAGE_BASE, ranks, seed)
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "a.safetensors", Path(folder) / "b.safetensors"
        write_lora(first, lora, IMAGE_BASE, fmt, torch.float32)
        once = read_lora(first, IMAGE_BASE)
        write_lora(second, once, IMAGE_BASE, fmt, torch.float32)
        twice = read_lora(second, IMAGE_BASE)
        assert first.read_bytes() == second.read_bytes()
    assert set(once.factors) == set(twice.factors) == set(ranks)
    for key, factors in lora.factors.items():
        assert once.factors[key].rank == max(ranks.values())
        torch.testing.assert_close(once.factors[key].delta(), factors.delta(), rtol=1e-6, atol=1e-6)
        assert torch.equal(twice.factors[key].a, once.factors[key].a)
        assert torch.equal(twice.factors[key].b, once.factors[key].b)
    assert not once.provenance.ignored


@pytest.mark.parametrize("source", ["wan", "diffusers", "kohya"])
@pytest.mark.parametrize("target", ["wan", "diffusers", "kohya"])
def test_every_format_converts_to_every_other(source: LoraFormat, target: LoraFormat, tmp_path: Path) -> None:
    base = small_wan()
    lora = random_lora(base, {site.key: 2 for site in base.sites[:7]})
    write_lora(tmp_path / "a.safetensors", lora, base, source, torch.float32)
    write_lora(tmp_path / "b.safetensors", read_lora(tmp_path / "a.safetensors", base), base, target, torch.float32)
    again = read_lora(tmp_path / "b.safetensors", base)
    assert list(again.factors) == list(lora.factors)
    for key, factors in lora.factors.items():
        assert torch.equal(again.factors[key].a, factors.a)
        assert torch.equal(again.factors[key].b, factors.b)


@pytest.mark.parametrize(("rslora", "scale"), [(True, 8.0), (False, 4.0)])
def test_a_peft_folder_takes_its_scale_from_the_configuration_beside_it(
    rslora: bool, scale: float, tmp_path: Path
) -> None:
    base = small_wan()
    pairs = random_pairs(base.sites)
    save(tmp_path / "adapter_model.safetensors", original_file(pairs, prefix="base_model.model."))
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "use_rslora": rslora, "alpha_pattern": {"ffn.0": 2}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        lora = read_lora(path, base)
        assert lora.provenance.family == "F7"
        assert not lora.provenance.ignored
        a, b = pairs["blocks.1.cross_attn.o"]
        torch.testing.assert_close(lora.factors["blocks.1.cross_attn.o"].delta(), scale * (b @ a))
        a, b = pairs["blocks.0.ffn.0"]
        torch.testing.assert_close(lora.factors["blocks.0.ffn.0"].delta(), (1.0 if rslora else 0.5) * (b @ a))


def test_without_the_configuration_a_peft_file_is_read_at_scale_one_and_says_so(tmp_path: Path) -> None:
    base = small_wan()
    path = save(tmp_path / "x.safetensors", original_file(random_pairs(base.sites), prefix="base_model.model."))
    lora = read_lora(path, base)
    assert set(lora.provenance.scales.values()) == {1.0}
    assert "alpha is taken to be the rank" in lora.provenance.ignored["adapter_config.json"]


def test_a_configuration_beside_a_file_of_another_family_is_not_used(tmp_path: Path) -> None:
    base = small_wan()
    path = save(tmp_path / "x.safetensors", original_file(random_pairs(base.sites)))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 64}))
    assert set(read_lora(path, base).provenance.scales.values()) == {1.0}


def test_half_precision_factors_come_out_in_float32(tmp_path: Path) -> None:
    base = small_wan()
    pairs = random_pairs(base.sites)
    tensors = {key: tensor.bfloat16() for key, tensor in down_up_file(pairs, alpha=3.0).items()}
    lora = read_lora(save(tmp_path / "x.safetensors", tensors), base)
    for key, factors in lora.factors.items():
        assert factors.a.dtype == factors.b.dtype == torch.float32
        a, b = (tensor.bfloat16().float() for tensor in pairs[key])
        torch.testing.assert_close(factors.delta(), 0.75 * (b @ a))


def test_a_one_by_one_convolution_is_a_matrix(tmp_path: Path) -> None:
    base = small_wan()
    pairs = random_pairs(base.sites[:1])
    tensors = {key: t[:, :, None, None] if t.dim() else t for key, t in down_up_file(pairs, alpha=4.0).items()}
    (factors,) = read_lora(save(tmp_path / "x.safetensors", tensors), base).factors.values()
    a, b = pairs[base.sites[0].key]
    torch.testing.assert_close(factors.delta(), b @ a)


def test_what_is_no_part_of_a_site_is_reported_with_its_reason(tmp_path: Path) -> None:
    base = small_wan()
    tensors = down_up_file(random_pairs(base.sites[:2]))
    tensors |= {
        "diffusion_model.blocks.0.norm3.diff": torch.zeros(32),
        "diffusion_model.blocks.0.norm3.diff_b": torch.zeros(32),
        "diffusion_model.patch_embedding.diff": torch.zeros(32, 36, 1, 2, 2),
        "diffusion_model.patch_embedding.diff_b": torch.zeros(32),
        "diffusion_model.blocks.0.diff_m": torch.zeros(1, 6, 32),
        "diffusion_model.text_embedding.0.lora_down.weight": torch.zeros(2, 12),
        "diffusion_model.text_embedding.0.lora_up.weight": torch.zeros(32, 2),
        "diffusion_model.blocks.1.cross_attn.k_img.lora_down.weight": torch.zeros(2, 32),
        "diffusion_model.blocks.1.cross_attn.k_img.lora_up.weight": torch.zeros(32, 2),
        "diffusion_model.blocks.1.ffn.0.alpha": torch.tensor(1.0),
        "lora_te_layers_0.lora_down.weight": torch.zeros(2, 2),
        "lora_te_layers_0.lora_up.weight": torch.zeros(2, 2),
        "some.statistics": torch.zeros(1),
    }
    lora = read_lora(save(tmp_path / "x.safetensors", tensors), base)
    assert len(lora.factors) == 2
    assert not lora.biases
    reasons = {key.removeprefix("diffusion_model."): why for key, why in lora.provenance.ignored.items()}
    assert len(reasons) == 13
    assert reasons["blocks.0.norm3.diff"] == reasons["blocks.0.norm3.diff_b"] == "of a normalisation layer"
    assert "full difference" in reasons["patch_embedding.diff"]
    assert "not a site of small-wan" in reasons["patch_embedding.diff_b"]
    assert "modulation" in reasons["blocks.0.diff_m"]
    assert "not a site of small-wan" in reasons["text_embedding.0.lora_down.weight"]
    assert "not a site of small-wan" in reasons["blocks.1.cross_attn.k_img.lora_up.weight"]
    assert reasons["blocks.1.ffn.0.alpha"] == "an alpha without factors"
    assert reasons["lora_te_layers_0.lora_up.weight"] == "of the text encoder"
    assert "no part of a LoRA" in reasons["some.statistics"]


def test_a_bias_without_factors_is_kept(tmp_path: Path) -> None:
    base = small_wan()
    tensors = original_file(random_pairs(base.sites[:1]))
    tensors["diffusion_model.blocks.1.ffn.2.diff_b"] = torch.ones(32)
    lora = read_lora(save(tmp_path / "x.safetensors", tensors), base)
    assert list(lora.factors) == ["blocks.0.self_attn.q"]
    assert torch.equal(lora.biases["blocks.1.ffn.2"], torch.ones(32))


def test_a_file_is_read_from_any_fsspec_place(tmp_path: Path) -> None:
    base = small_wan()
    pairs = random_pairs(base.sites[:3])
    path = save(tmp_path / "x.safetensors", original_file(pairs, prefix="base_model.model."))
    memory = fsspec.filesystem("memory")
    memory.pipe("/formats/x.safetensors", path.read_bytes())
    memory.pipe("/formats/adapter_config.json", json.dumps({"r": RANK, "lora_alpha": 2}).encode())
    lora = read_lora("memory://formats/x.safetensors", base)
    assert list(lora.factors) == [site.key for site in base.sites[:3]]
    assert set(lora.provenance.scales.values()) == {0.5}


# Two experts


def test_each_expert_gets_a_file_that_knows_whose_it_is(tmp_path: Path) -> None:
    base = small_wan(experts=True)
    lora = random_lora(base, {site.key: 2 for site in base.sites})
    paths = write_lora(tmp_path / "x.safetensors", lora, base, dtype=torch.float32)
    assert [path.name for path in paths] == ["x_high_noise.safetensors", "x_low_noise.safetensors"]
    read = [read_lora(path, base) for path in paths]
    assert {key.partition(".")[0] for key in read[0].factors} == {"high_noise"}
    factors = {**read[0].factors, **read[1].factors}
    assert list(factors) == list(lora.factors)
    for key in factors:
        assert torch.equal(factors[key].b, lora.factors[key].b)


def test_keys_that_name_the_transformer_decide(tmp_path: Path) -> None:
    base = small_wan(experts=True)
    pairs = random_pairs(small_wan().sites)
    other = {key: (a, 2 * b) for key, (a, b) in pairs.items()}
    tensors = original_file(pairs, prefix="diffusion_model.transformer_1.")
    tensors |= original_file(other, prefix="diffusion_model.transformer_2.")
    path = save(tmp_path / "x.safetensors", tensors)
    lora = read_lora(path, base)
    assert len(lora.factors) == 40
    high, low = (lora.factors[f"{expert}.blocks.1.ffn.2"].delta() for expert in ("high_noise", "low_noise"))
    torch.testing.assert_close(low, 2 * high)
    asked = read_lora(path, base, expert="low_noise")
    assert set(asked.factors) == {site.key for site in base.sites if site.expert == "low_noise"}
    assert set(asked.provenance.ignored.values()) == {"of the expert that was not asked for"}
    with pytest.raises(FormatError, match="one of two transformers, small-wan has one"):
        read_lora(path, small_wan())


def test_a_file_without_a_name_of_its_expert_needs_the_argument(tmp_path: Path) -> None:
    base = small_wan(experts=True)
    path = save(tmp_path / "x_high_noise.safetensors", original_file(random_pairs(small_wan().sites)))
    with pytest.raises(InputError, match="name the expert: high_noise or low_noise, or both"):
        read_lora(path, base)
    assert set(read_lora(path, base, "low_noise").factors) == {s.key for s in base.sites if s.expert == "low_noise"}
    assert set(read_lora(path, base, "both").factors) == {site.key for site in base.sites}
    with pytest.raises(InputError, match="no expert 'middle'; choose high_noise or low_noise, or both"):
        read_lora(path, base, "middle")
    with pytest.raises(InputError, match="no experts; leave out the expert 'low_noise'"):
        read_lora(path, small_wan(), "low_noise")


# The base told from the layers


def some_file(path: Path, base_name: str, modules: list[str], *, blocks: int = 1, start: int = 0) -> Path:
    """A rank-1 F1 file of zero-copy size: some modules of some blocks of a released base."""
    base = get_base(base_name)
    sites = [s for s in base.sites if s.module in modules and start <= s.block < start + blocks]
    return save(path, original_file({s.name: pair for s in sites for pair in random_pairs([s], 1).values()}))


def test_layers_that_one_base_alone_has_tell_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    cases = {
        "wan2.1-i2v-14b": ["cross_attn.k_img"],
        "wan2.1-t2v-1.3b": ["self_attn.q"],
        "wan2.2-ti2v-5b": ["ffn.0"],
        "ltx-video": ["attn1.to_q"],
        "hunyuanvideo-i2v": ["img_attn_qkv"],
        "cogvideox-5b-i2v": ["attn1.to_q"],
        "world": ["self_attn.q"],
    }
    for name, modules in cases.items():
        some_file(path, name, modules)
        assert detect_lora_base(path).name == name
        assert read_lora(path).base == name


def test_bases_with_the_same_layers_must_be_named(tmp_path: Path) -> None:
    path = some_file(tmp_path / "x.safetensors", "wan2.1-t2v-14b", ["self_attn.q", "ffn.0"])
    with pytest.raises(InputError, match=r"--base: wan2[.]1-i2v-14b, wan2[.]1-t2v-14b, wan2[.]2-i2v-a14b"):
        read_lora(path)
    assert detect_lora_base(path, expert="high_noise").name == "wan2.2-i2v-a14b"
    assert read_lora(path, expert="low_noise").base == "wan2.2-i2v-a14b"
    assert read_lora(path, get_base("wan2.1-t2v-14b")).base == "wan2.1-t2v-14b"


def test_a_file_of_ours_says_its_base(tmp_path: Path) -> None:
    base = get_base("wan2.1-t2v-14b")
    site = base.sites[0]
    lora = Lora(base.name, {site.key: Factors(torch.ones(1, site.d_in), torch.ones(site.d_out, 1))})
    for fmt in ("wan", "diffusers"):
        write_lora(tmp_path / "x.safetensors", lora, base, fmt)
        assert read_lora(tmp_path / "x.safetensors").base == base.name
