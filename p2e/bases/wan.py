"""Wan 2.1 and 2.2: one block layout at several widths.

Every block has self-attention, cross-attention to the text and a feed-forward pair; the image-to-video model of 2.1
adds keys and values for the CLIP image states (k_img, v_img). Original and diffusers names differ throughout.

Every linear layer of a block is a site: that is what the common trainers adapt. Outside the blocks nothing is: patch,
text, time and image embeddings and the head are left alone by all of them.
"""

from collections.abc import Mapping
from typing import Any

from p2e.bases.base import EXPERTS, Base, Family, Part, Shapes, Site, count_blocks, head_dims

__all__ = ["WAN", "WAN_BASES", "WAN_MODULES", "wan_base"]

# original name inside a block -> diffusers name
WAN_MODULES: dict[str, str] = {
    "self_attn.q": "attn1.to_q", "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v", "self_attn.o": "attn1.to_out.0",
    "cross_attn.q": "attn2.to_q", "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v", "cross_attn.o": "attn2.to_out.0",
    "cross_attn.k_img": "attn2.add_k_proj", "cross_attn.v_img": "attn2.add_v_proj",
    "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2",
}  # fmt: skip


def wan_base(
    name: str,
    *,
    num_layers: int,
    heads: int,
    head_dim: int = 128,
    ffn: int,
    in_channels: int,
    out_channels: int,
    image_dim: int | None = None,
    subfolders: Mapping[str | None, str] | None = None,
    text_dim: int = 4096,
    **config: Any,
) -> Base:
    """The site table of a Wan transformer: num_layers blocks of width heads x head_dim.

    Args:
        image_dim: width of the CLIP image states; adds k_img and v_img to every block.
        subfolders: expert -> folder of its weights, for the two-expert models.
        config: further arguments of diffusers' WanTransformer3DModel.
    """
    dim = heads * head_dim
    shapes = {"ffn.0": (ffn, dim), "ffn.2": (dim, ffn)}
    folders = subfolders or {None: "transformer"}
    sites: list[Site] = []
    for expert_index, expert in enumerate(folders):
        for layer in range(num_layers):
            for module, diffusers in WAN_MODULES.items():
                if module.endswith("_img") and image_dim is None:
                    continue
                d_out, d_in = shapes.get(module, (dim, dim))
                part = Part(f"blocks.{layer}.{diffusers}", d_out)
                block = expert_index * num_layers + layer
                name_ = f"blocks.{layer}.{module}"
                sites.append(Site(len(sites), block, module, d_out, d_in, name_, (part,), expert))
    return Base(
        name=name,
        family="wan",
        sites=tuple(sites),
        diffusers_class="WanTransformer3DModel",
        diffusers_config={
            "num_layers": num_layers,
            "num_attention_heads": heads,
            "attention_head_dim": head_dim,
            "ffn_dim": ffn,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "text_dim": text_dim,
            "image_dim": image_dim,
            "added_kv_proj_dim": None if image_dim is None else dim,
            **config,
        },
        subfolders=folders,
        text_dim=text_dim,
    )


WAN_BASES: dict[str, Base] = {
    base.name: base
    for base in (
        wan_base("wan2.1-i2v-14b", num_layers=40, heads=40, ffn=13824, in_channels=36, out_channels=16, image_dim=1280),
        wan_base("wan2.1-t2v-14b", num_layers=40, heads=40, ffn=13824, in_channels=16, out_channels=16),
        wan_base("wan2.1-t2v-1.3b", num_layers=30, heads=12, ffn=8960, in_channels=16, out_channels=16),
        wan_base(
            "wan2.2-i2v-a14b", num_layers=40, heads=40, ffn=13824, in_channels=36, out_channels=16,
            subfolders=EXPERTS,
        ),
        wan_base("wan2.2-ti2v-5b", num_layers=30, heads=24, ffn=14336, in_channels=48, out_channels=48),
        # The embedded world: latents of 48 channels at 1/8 resolution, so every latent cell is a token.
        wan_base(
            "world", num_layers=8, heads=8, head_dim=32, ffn=1024, in_channels=100, out_channels=48,
            text_dim=384, patch_size=(1, 1, 1), freq_dim=64,
        ),
    )
}  # fmt: skip


def _build(name: str, config: Mapping[str, Any], subfolders: Mapping[str | None, str]) -> Base:
    rest = dict(config)
    sizes = {
        "num_layers": rest.pop("num_layers", 40), "heads": rest.pop("num_attention_heads", 40),
        "head_dim": rest.pop("attention_head_dim", 128), "ffn": rest.pop("ffn_dim", 13824),
        "in_channels": rest.pop("in_channels", 16), "out_channels": rest.pop("out_channels", None),
        "image_dim": rest.pop("image_dim", None), "text_dim": rest.pop("text_dim", 4096),
    }  # fmt: skip
    rest.pop("added_kv_proj_dim", None)
    sizes["out_channels"] = sizes["out_channels"] or sizes["in_channels"]
    return wan_base(name, subfolders=subfolders, **sizes, **rest)


def _identity(config: Mapping[str, Any]) -> tuple[Any, ...]:
    sizes = ("num_layers", "num_attention_heads", "attention_head_dim", "ffn_dim", "in_channels", "text_dim")
    defaults = (40, 40, 128, 13824, 16, 4096)
    return (
        *(config.get(key, default) for key, default in zip(sizes, defaults, strict=True)),
        config.get("image_dim"),
        tuple(config.get("patch_size", (1, 2, 2))),
    )


def _configs(shapes: Shapes) -> list[dict[str, Any]]:
    original = "blocks.0.self_attn.q.weight" in shapes
    patch, text, ffn, image, head = (
        shapes.get(f"{name}.weight")
        for name in (
            ("patch_embedding", "text_embedding.0", "blocks.0.ffn.0", "img_emb.proj.1", "head.head") if original else
            ("patch_embedding", "condition_embedder.text_embedder.linear_1", "blocks.0.ffn.net.0.proj",
             "condition_embedder.image_embedder.ff.net.0.proj", "proj_out")
        )
    )  # fmt: skip
    if patch is None or text is None or ffn is None or head is None or len(patch) != 5:
        return []
    dim, in_channels, *patch_size = patch
    cell = patch_size[0] * patch_size[1] * patch_size[2]
    return [
        {
            "num_layers": count_blocks(shapes, "blocks."), "num_attention_heads": dim // head_dim,
            "attention_head_dim": head_dim, "ffn_dim": ffn[0], "in_channels": in_channels,
            "out_channels": head[0] // cell, "image_dim": image[1] if image else None, "text_dim": text[1],
            "patch_size": tuple(patch_size),
        }
        for head_dim in head_dims(dim, preferred=128)
    ]  # fmt: skip


WAN = Family("wan", "WanTransformer3DModel", WAN_BASES, _build, _identity, _configs)
