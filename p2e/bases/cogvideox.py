"""CogVideoX: joint attention over text and video, and a feed-forward pair, in every block.

LoRAs for it use diffusers names only, so those count as the original names here. The first checkpoints, which fuse
q, k and v, exist as pickles alone and are not read.

Not sites: norm1.linear and norm2.linear, the modulation of a block. The training scripts for this model adapt
attention, at most also the feed-forward pair, and never these.
"""

from collections.abc import Mapping
from typing import Any

from p2e.bases.base import Base, Family, Part, Shapes, Site, count_blocks, head_dims

__all__ = ["COGVIDEOX", "COGVIDEOX_BASES", "COGVIDEOX_EXCLUDED", "COGVIDEOX_MODULES", "cogvideox_base"]

COGVIDEOX_MODULES: tuple[str, ...] = (
    "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2",
)  # fmt: skip
COGVIDEOX_EXCLUDED: tuple[str, ...] = ("norm1.linear", "norm2.linear")


def cogvideox_base(
    name: str,
    *,
    num_layers: int = 30,
    heads: int = 30,
    head_dim: int = 64,
    text_dim: int = 4096,
    subfolders: Mapping[str | None, str] | None = None,
    **config: Any,
) -> Base:
    """The site table of a CogVideoX transformer: num_layers blocks of width heads x head_dim.

    Args:
        config: further arguments of diffusers' CogVideoXTransformer3DModel.
    """
    dim = heads * head_dim
    shapes = {"ff.net.0.proj": (4 * dim, dim), "ff.net.2": (dim, 4 * dim)}
    sites: list[Site] = []
    for layer in range(num_layers):
        for module in COGVIDEOX_MODULES:
            d_out, d_in = shapes.get(module, (dim, dim))
            layer_name = f"transformer_blocks.{layer}.{module}"
            sites.append(Site(len(sites), layer, module, d_out, d_in, layer_name, (Part(layer_name, d_out),)))
    return Base(
        name=name,
        family="cogvideox",
        sites=tuple(sites),
        diffusers_class="CogVideoXTransformer3DModel",
        diffusers_config={
            "num_layers": num_layers,
            "num_attention_heads": heads,
            "attention_head_dim": head_dim,
            "text_embed_dim": text_dim,
            **config,
        },
        subfolders=subfolders or {None: "transformer"},
        text_dim=text_dim,
    )


COGVIDEOX_BASES: dict[str, Base] = {
    # 32 input channels: 16 of noise, 16 of the first frame's latent.
    "cogvideox-5b-i2v": cogvideox_base(
        "cogvideox-5b-i2v", num_layers=42, heads=48, in_channels=32, out_channels=16,
        use_rotary_positional_embeddings=True, use_learned_positional_embeddings=True,
    )
}  # fmt: skip


def _build(name: str, config: Mapping[str, Any], subfolders: Mapping[str | None, str]) -> Base:
    rest = dict(config)
    sizes = {
        "num_layers": rest.pop("num_layers", 30), "heads": rest.pop("num_attention_heads", 30),
        "head_dim": rest.pop("attention_head_dim", 64), "text_dim": rest.pop("text_embed_dim", 4096),
    }  # fmt: skip
    return cogvideox_base(name, subfolders=subfolders, **sizes, **rest)


def _identity(config: Mapping[str, Any]) -> tuple[Any, ...]:
    sizes = ("num_layers", "num_attention_heads", "attention_head_dim", "text_embed_dim", "in_channels")
    defaults = (30, 30, 64, 4096, 16)
    return (
        *(config.get(key, default) for key, default in zip(sizes, defaults, strict=True)),
        config.get("patch_size_t"),
    )


def _configs(shapes: Shapes) -> list[dict[str, Any]]:
    patch, text = shapes.get("patch_embed.proj.weight"), shapes.get("patch_embed.text_proj.weight")
    if not patch or not text or "transformer_blocks.0.attn1.to_q.weight" not in shapes:
        return []
    # Version 1.5 patches time as well and holds the projection as a matrix over 2 x 2 x 2 cells.
    dim, patch_size_t = patch[0], None if len(patch) == 4 else 2
    return [
        {
            "num_layers": count_blocks(shapes, "transformer_blocks."), "num_attention_heads": dim // head_dim,
            "attention_head_dim": head_dim, "text_embed_dim": text[1],
            "in_channels": patch[1] if patch_size_t is None else patch[1] // 8, "patch_size_t": patch_size_t,
        }
        for head_dim in head_dims(dim, preferred=64)
    ]  # fmt: skip


COGVIDEOX = Family("cogvideox", "CogVideoXTransformer3DModel", COGVIDEOX_BASES, _build, _identity, _configs)
