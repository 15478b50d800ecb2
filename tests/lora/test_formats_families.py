"""LTX-Video, HunyuanVideo and CogVideoX: what is read and written, against diffusers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import HunyuanVideoImageToVideoPipeline
from lora_files import (
    RANK,
    assert_same_updates,
    diffusers_updates,
    header,
    original_file,
    our_updates,
    pipeline,
    random_lora,
    random_pairs,
    save,
)

from p2e.bases import Base
from p2e.bases.cogvideox import cogvideox_base
from p2e.bases.hunyuan import hunyuan_base
from p2e.bases.ltx import ltx_base
from p2e.lora.formats import LoraFormat, read_lora, write_lora


def small_ltx() -> Base:
    return ltx_base("small-ltx", num_layers=2, heads=2, head_dim=16, text_dim=12, in_channels=8, out_channels=8)


def small_cogvideox() -> Base:
    return cogvideox_base(
        "small-cogvideox", num_layers=2, heads=2, head_dim=16, text_dim=12, in_channels=8, out_channels=4,
        time_embed_dim=8,
    )  # fmt: skip


def small_hunyuan(num_single_layers: int = 2) -> Base:
    return hunyuan_base(
        "small-hunyuan", num_layers=2, num_single_layers=num_single_layers, heads=2, head_dim=16, text_dim=12,
        in_channels=8, out_channels=8, num_refiner_layers=1, rope_axes_dim=(4, 6, 6), pooled_projection_dim=8,
        image_condition_type="token_replace",
    )  # fmt: skip


FORMS = [
    (small_ltx, "wan"), (small_ltx, "diffusers"), (small_cogvideox, "wan"), (small_cogvideox, "diffusers"),
    (small_hunyuan, "diffusers"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "fmt"), FORMS)
def test_a_file_of_ours_loads_in_diffusers_with_the_same_updates(
    make: Callable[[], Base], fmt: LoraFormat, tmp_path: Path
) -> None:
    base = make()
    lora = random_lora(base, {site.key: 1 + site.index % 3 for site in base.sites})
    (path,) = write_lora(tmp_path / "x.safetensors", lora, base, fmt, torch.float32)
    pipe = pipeline(base)
    pipe.load_lora_weights(str(path))
    count = sum(len(site.parts) for site in base.sites)
    assert_same_updates(our_updates(base, lora), diffusers_updates(pipe), count)
    again = read_lora(path, base)
    assert list(again.factors) == [site.key for site in base.sites]
    assert {factors.rank for factors in again.factors.values()} == {3}


@pytest.mark.parametrize("covered", ["img_attn_qkv", "txt_mlp.fc2"])
def test_original_hunyuan_names_load_in_diffusers_even_where_qkv_is_not_covered(covered: str, tmp_path: Path) -> None:
    base = small_hunyuan(num_single_layers=0)
    keys = [site.key for site in base.sites if site.module == covered]
    lora = random_lora(base, dict.fromkeys(keys, 2))
    (path,) = write_lora(tmp_path / "x.safetensors", lora, base, "wan", torch.float32)
    pipe = pipeline(base)
    pipe.load_lora_weights(str(path))
    theirs = {name: update for name, update in diffusers_updates(pipe).items() if update.any()}
    assert_same_updates(our_updates(base, lora), theirs, count=6 if covered == "img_attn_qkv" else 2)
    assert list(read_lora(path, base).factors) == keys


@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model."])
def test_fused_layers_in_original_names_are_split_by_diffusers_as_by_us(prefix: str, tmp_path: Path) -> None:
    # diffusers splits the joint stream at the released width only, so no model is built here.
    base = hunyuan_base("wide-hunyuan", num_layers=1, num_single_layers=1)
    sites = [site for site in base.sites if "mod" not in site.module]
    path = save(tmp_path / "x.safetensors", original_file(random_pairs(sites), prefix=prefix))
    lora = read_lora(path, base)
    theirs = HunyuanVideoImageToVideoPipeline.lora_state_dict(str(path))
    assert isinstance(theirs, dict)
    layers = {name.removesuffix(".lora_A.weight") for name in theirs if name.endswith(".lora_A.weight")}
    assert {f"transformer.{part.name}" for site in sites for part in site.parts} == layers
    assert len(layers) == 17
    for site in sites:
        a, b = lora.factors[site.key]
        row = 0
        for part in site.parts:
            assert torch.equal(a, theirs[f"transformer.{part.name}.lora_A.weight"])
            assert torch.equal(b[row : row + part.rows], theirs[f"transformer.{part.name}.lora_B.weight"])
            row += part.rows


@pytest.mark.parametrize("shared", [True, False], ids=["one A for q, k, v", "an A each"])
def test_split_layers_become_one_fused_site(shared: bool, tmp_path: Path) -> None:
    base = small_hunyuan()
    a = [torch.randn(RANK, 32)] * 4 if shared else [torch.randn(RANK, 32) for _ in range(4)]
    tensors: dict[str, torch.Tensor] = {}
    for site in base.sites:
        for index, part in enumerate(site.parts):
            if len(site.parts) > 1:
                tensors[f"transformer.{part.name}.lora_A.weight"] = a[index]
                tensors[f"transformer.{part.name}.lora_B.weight"] = torch.randn(part.rows, RANK)
    settings = {"r": RANK, "lora_alpha": 2, "target_modules": sorted(n[12:].split(".lora_")[0] for n in tensors)}
    path = save(tmp_path / "x.safetensors", tensors, header(**settings))
    pipe = pipeline(base)
    pipe.load_lora_weights(str(path))
    lora = read_lora(path, base)
    assert len(lora.factors) == 6
    ranks = {site: factors.rank for site, factors in lora.factors.items()}
    assert ranks["double_blocks.0.img_attn_qkv"] == (RANK if shared else 3 * RANK)
    assert ranks["single_blocks.1.linear1"] == (RANK if shared else 4 * RANK)
    assert_same_updates(our_updates(base, lora), diffusers_updates(pipe), count=20)


def test_comfyui_names_of_hunyuan_are_the_original_ones(tmp_path: Path) -> None:
    base = small_hunyuan()
    pairs = random_pairs(base.sites)
    tensors = original_file(pairs)
    renamed = {
        name.replace("_attn_", "_attn.").replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.2").replace(
            ".linear.", ".lin."
        ): tensor
        for name, tensor in tensors.items()
    }  # fmt: skip
    assert not set(renamed) & {name for name in tensors if "linear1" not in name and "linear2" not in name}
    lora = read_lora(save(tmp_path / "x.safetensors", renamed), base)
    assert list(lora.factors) == [site.key for site in base.sites]
    assert all(torch.equal(lora.factors[key].a, a) for key, (a, _) in pairs.items())


def test_rows_that_no_part_adapts_stay_as_they_are(tmp_path: Path) -> None:
    base = small_hunyuan()
    layer = "transformer.transformer_blocks.1.attn.to_v"
    a, b = torch.randn(RANK, 32), torch.randn(32, RANK)
    path = save(tmp_path / "x.safetensors", {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b})
    (factors,) = read_lora(path, base).factors.values()
    assert factors.rank == RANK
    assert not factors.delta()[:64].any()
    torch.testing.assert_close(factors.delta()[64:], b @ a)


def test_a_fused_layer_and_one_of_its_parts_in_one_file_contradict(tmp_path: Path) -> None:
    base = small_hunyuan()
    tensors = {
        "double_blocks.0.img_attn_qkv.lora_A.weight": torch.randn(2, 32),
        "double_blocks.0.img_attn_qkv.lora_B.weight": torch.randn(96, 2),
        "transformer_blocks.0.attn.to_k.lora_A.weight": torch.randn(2, 32),
        "transformer_blocks.0.attn.to_k.lora_B.weight": torch.randn(32, 2),
    }
    with pytest.raises(ValueError, match=r"two LoRAs of double_blocks\.0\.img_attn_qkv"):
        read_lora(save(tmp_path / "x.safetensors", tensors), base)


@pytest.mark.parametrize("make", [small_ltx, small_cogvideox, small_hunyuan])
def test_kohya_names_of_every_family_round_trip(make: Callable[[], Base], tmp_path: Path) -> None:
    base = make()
    lora = random_lora(base, {site.key: 2 for site in base.sites[::3]})
    (path,) = write_lora(tmp_path / "x.safetensors", lora, base, "kohya", torch.float32)
    again = read_lora(path, base)
    assert again.provenance.family == "F3"
    assert_same_updates(our_updates(base, again), our_updates(base, lora), len(our_updates(base, lora)))
