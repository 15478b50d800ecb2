"""Every site table against the diffusers class that it describes, built without memory on the meta device."""

import re

import diffusers
import pytest
import torch
from torch import nn

from p2e.bases import Base, base_names, get_base
from p2e.bases.cogvideox import COGVIDEOX_EXCLUDED
from p2e.bases.registry import FAMILIES
from p2e.errors import InputError

NAMES = [
    "wan2.1-i2v-14b", "wan2.1-t2v-14b", "wan2.1-t2v-1.3b", "wan2.2-i2v-a14b", "wan2.2-ti2v-5b",
    "ltx-video", "hunyuanvideo-i2v", "cogvideox-5b-i2v", "world",
]  # fmt: skip
# name -> (sites, parameters of a rank-1 LoRA, parameters of one transformer in billions)
NUMBERS = {
    "wan2.1-i2v-14b": (480, 5_611_520, 16.395),
    "wan2.1-t2v-14b": (400, 4_792_320, 14.288),
    "wan2.1-t2v-1.3b": (300, 1_367_040, 1.419),
    "wan2.2-i2v-a14b": (800, 2 * 4_792_320, 14.289),
    "wan2.2-ti2v-5b": (300, 2_519_040, 5.000),
    "ltx-video": (280, 28 * (8 * 4096 + 2 * 10240), 1.923),
    "hunyuanvideo-i2v": (
        320,
        20 * 2 * (6 * 3072 + 3072 + 9216 + 3072 + 2 * 3072 + 2 * (12288 + 3072))
        + 40 * (9216 + 3072 + 21504 + 3072 + 3072 + 15360),
        12.821,
    ),
    "cogvideox-5b-i2v": (252, 42 * (4 * 6144 + 2 * 15360), 5.571),
    "world": (80, 8 * (8 * 512 + 2 * 1280), 0.009),
}
BLOCKS = re.compile(r"^(transformer_blocks|single_transformer_blocks|blocks)\.\d+\.")
# Linear layers inside blocks that are not sites, by family.
EXCLUDED = {"wan": (), "ltx": (), "hunyuan": (), "cogvideox": COGVIDEOX_EXCLUDED}


def on_meta(base: Base) -> nn.Module:
    with torch.device("meta"):
        return getattr(diffusers, base.diffusers_class)(**base.diffusers_config)


@pytest.mark.parametrize("name", NAMES)
def test_table_equals_diffusers_class(name: str) -> None:
    base = get_base(name)
    model = on_meta(base)
    linears = {n: tuple(m.weight.shape) for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    sites, lora, billions = NUMBERS[name]
    assert len(base.sites) == sites
    assert base.lora_parameters == lora
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=6e-4)
    for expert in base.experts:
        of_expert = [site for site in base.sites if site.expert == expert]
        for site in of_expert:
            rows, columns = zip(*(linears[part.name] for part in site.parts), strict=True)
            assert rows == tuple(part.rows for part in site.parts)
            assert sum(rows) == site.d_out
            assert set(columns) == {site.d_in}
        table = [part.name for site in of_expert for part in site.parts]
        assert len(set(table)) == len(table)
        in_blocks = {n for n in linears if BLOCKS.match(n)}
        left_out = in_blocks - set(table)
        assert set(table) <= in_blocks
        assert {BLOCKS.sub("", n) for n in left_out} == set(EXCLUDED[base.family])


@pytest.mark.parametrize("name", NAMES)
def test_names_go_both_ways(name: str) -> None:
    base = get_base(name)
    for index, site in enumerate(base.sites):
        assert site.index == index
        assert base.by_key[site.key] is site
        assert site.name.endswith(f".{site.module}")
        row = 0
        for part in site.parts:
            assert base.by_part[site.expert, part.name] == (site, row)
            row += part.rows
        assert row == site.d_out
    assert len(base.by_key) == len(base.sites)
    assert len(base.by_part) == sum(len(site.parts) for site in base.sites)
    order = [(base.experts.index(site.expert), site.block) for site in base.sites]
    assert order == sorted(order)
    assert {site.block for site in base.sites} == set(range(base.num_blocks))
    assert {site.module for site in base.sites} == set(base.modules)
    assert sum(map(len, base.shapes.values())) == len(base.sites)


def test_wan_blocks_have_three_shapes() -> None:
    shapes = get_base("wan2.1-i2v-14b").shapes
    assert {shape: len(sites) for shape, sites in shapes.items()} == {
        (5120, 5120): 400,
        (13824, 5120): 40,
        (5120, 13824): 40,
    }


def test_wan_lora_size_of_the_reference() -> None:
    # A rank-32 file in two bytes a number: the published size of image-to-video LoRAs for this base.
    assert get_base("wan2.1-i2v-14b").lora_parameters * 32 * 2 / 1e6 == pytest.approx(359.1, abs=0.05)


def test_two_experts() -> None:
    base = get_base("wan2.2-i2v-a14b")
    assert base.subfolders == {"high_noise": "transformer", "low_noise": "transformer_2"}
    assert base.num_blocks == 80
    high, low = base.by_key["high_noise.blocks.0.ffn.0"], base.by_key["low_noise.blocks.0.ffn.0"]
    assert (high.name, high.block, low.name, low.block) == ("blocks.0.ffn.0", 0, "blocks.0.ffn.0", 40)


def test_fused_sites_of_hunyuan() -> None:
    base = get_base("hunyuanvideo-i2v")
    linear1 = base.by_key["single_blocks.7.linear1"]
    assert [(part.name.split(".", 2)[2], part.rows) for part in linear1.parts] == [
        ("attn.to_q", 3072),
        ("attn.to_k", 3072),
        ("attn.to_v", 3072),
        ("proj_mlp", 12288),
    ]
    assert (linear1.d_out, linear1.d_in, linear1.block) == (21504, 3072, 27)
    assert base.by_part[None, "transformer_blocks.3.attn.add_v_proj"] == (
        base.by_key["double_blocks.3.txt_attn_qkv"],
        6144,
    )


def test_registry() -> None:
    assert base_names() == NAMES
    for family in FAMILIES:
        for name, base in family.bases.items():
            assert (base.name, base.family, base.diffusers_class) == (name, family.name, family.diffusers_class)
            rebuilt = family.build(name, base.diffusers_config, base.subfolders)
            assert rebuilt == base
    identities = [(f.name, f.identity(b.diffusers_config), b.experts) for f in FAMILIES for b in f.bases.values()]
    assert len(set(identities)) == len(identities)


def test_unknown_name_says_which_are_close() -> None:
    with pytest.raises(InputError, match=r"did you mean wan2\.1-i2v-14b.*names are .*world") as caught:
        get_base("Wan2.1-I2V-14B-480P")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="names are"):
        get_base("?" * 10_000)
