"""LTX-Video: self- and cross-attention and a feed-forward pair in every block.

Original and diffusers names of these layers are the same. Every linear layer of a block is a site; the embeddings and
proj_out are not, as no common trainer adapts them.
"""

from collections.abc import Mapping
from typing import Any

from p2e.bases.base import Base, Family, Part, Shapes, Site, count_blocks, head_dims

__all__ = ["LTX", "LTX_BASES", "LTX_MODULES", "ltx_base"]

LTX_MODULES: tuple[str, ...] = (
    "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0",
    "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0",
    "ff.net.0.proj", "ff.net.2",
)  # fmt: skip


def ltx_base(
    name: str,
    *,
    num_layers: int = 28,
    heads: int = 32,
    head_dim: int = 64,
    cross_dim: int | None = None,
    text_dim: int = 4096,
    subfolders: Mapping[str | None, str] | None = None,
    **config: Any,
) -> Base:
    """The site table of an LTX transformer: num_layers blocks of width heads x head_dim.

    Args:
        cross_dim: width of the projected text states that attn2 attends to; the model's width if None.
        config: further arguments of diffusers' LTXVideoTransformer3DModel.
    """
    dim = heads * head_dim
    cross_dim = cross_dim or dim
    shapes = {
        "attn2.to_k": (dim, cross_dim), "attn2.to_v": (dim, cross_dim),
        "ff.net.0.proj": (4 * dim, dim), "ff.net.2": (dim, 4 * dim),
    }  # fmt: skip
    sites: list[Site] = []
    for layer in range(num_layers):
        for module in LTX_MODULES:
            d_out, d_in = shapes.get(module, (dim, dim))
            layer_name = f"transformer_blocks.{layer}.{module}"
            sites.append(Site(len(sites), layer, module, d_out, d_in, layer_name, (Part(layer_name, d_out),)))
    return Base(
        name=name,
        family="ltx",
        sites=tuple(sites),
        diffusers_class="LTXVideoTransformer3DModel",
        diffusers_config={
            "num_layers": num_layers,
            "num_attention_heads": heads,
            "attention_head_dim": head_dim,
            "cross_attention_dim": cross_dim,
            "caption_channels": text_dim,
            **config,
        },
        subfolders=subfolders or {None: "transformer"},
        text_dim=text_dim,
    )


LTX_BASES: dict[str, Base] = {"ltx-video": ltx_base("ltx-video", in_channels=128, out_channels=128)}


def _build(name: str, config: Mapping[str, Any], subfolders: Mapping[str | None, str]) -> Base:
    rest = dict(config)
    sizes = {
        "num_layers": rest.pop("num_layers", 28), "heads": rest.pop("num_attention_heads", 32),
        "head_dim": rest.pop("attention_head_dim", 64), "cross_dim": rest.pop("cross_attention_dim", 2048),
        "text_dim": rest.pop("caption_channels", 4096),
    }  # fmt: skip
    return ltx_base(name, subfolders=subfolders, **sizes, **rest)


def _identity(config: Mapping[str, Any]) -> tuple[Any, ...]:
    sizes = ("num_layers", "num_attention_heads", "attention_head_dim", "cross_attention_dim", "caption_channels")
    defaults = (28, 32, 64, 2048, 4096)
    return (
        *(config.get(key, default) for key, default in zip(sizes, defaults, strict=True)),
        config.get("in_channels", 128),
    )


def _configs(shapes: Shapes) -> list[dict[str, Any]]:
    patch = shapes.get("patchify_proj.weight") or shapes.get("proj_in.weight")
    text, cross = shapes.get("caption_projection.linear_1.weight"), shapes.get("transformer_blocks.0.attn2.to_k.weight")
    if not patch or not text or not cross or any(".audio_" in name for name in shapes):
        return []  # with audio layers it is LTX-2, another model
    dim, in_channels = patch
    # The 2B model has heads of 64, the 13B one of 128: 32 heads in both.
    preferred = max(1, dim // 32)
    return [
        {
            "num_layers": count_blocks(shapes, "transformer_blocks."), "num_attention_heads": dim // head_dim,
            "attention_head_dim": head_dim, "cross_attention_dim": cross[1], "caption_channels": text[1],
            "in_channels": in_channels, "out_channels": shapes.get("proj_out.weight", (in_channels,))[0],
        }
        for head_dim in head_dims(dim, preferred)
    ]  # fmt: skip


LTX = Family("ltx", "LTXVideoTransformer3DModel", LTX_BASES, _build, _identity, _configs)
