"""HunyuanVideo: blocks with separate image and text streams, then blocks with one joint stream.

Sites are the original layers, which fuse q, k and v (and, in the joint stream, the first feed-forward matrix): LoRAs
are trained on those, and one factor A then serves all their rows. diffusers splits them by rows, so a site's parts,
stacked in order, are its weight. No layer is split by columns: linear2 and proj_out both take the concatenation of
attention and feed-forward as their input.

The modulation layers (img_mod, txt_mod, modulation) are sites too. Of the common trainers one adapts every linear
layer of a block, these included, another leaves these out by default; a table without them would drop a part of the
first one's updates, while a LoRA that does not cover a site is only masked there. Rows of modulation layers mean the
same in both namings; the one layer that diffusers reorders, that of final_layer, is outside the blocks.

Not sites: the text token refiner, the embeddings and the final layer, which no common trainer adapts.
"""

from collections.abc import Mapping
from typing import Any

from p2e.bases.base import Base, Family, Part, Shapes, Site, count_blocks, head_dims

__all__ = ["HUNYUAN", "HUNYUAN_BASES", "HUNYUAN_DOUBLE", "HUNYUAN_SINGLE", "hunyuan_base"]

# original name inside a block -> the diffusers layers that hold its rows, in order
HUNYUAN_DOUBLE: dict[str, tuple[str, ...]] = {
    "img_mod.linear": ("norm1.linear",), "txt_mod.linear": ("norm1_context.linear",),
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn_proj": ("attn.to_out.0",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn_proj": ("attn.to_add_out",),
    "img_mlp.fc1": ("ff.net.0.proj",), "img_mlp.fc2": ("ff.net.2",),
    "txt_mlp.fc1": ("ff_context.net.0.proj",), "txt_mlp.fc2": ("ff_context.net.2",),
}  # fmt: skip
HUNYUAN_SINGLE: dict[str, tuple[str, ...]] = {
    "modulation.linear": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
}  # fmt: skip


def hunyuan_base(
    name: str,
    *,
    num_layers: int = 20,
    num_single_layers: int = 40,
    heads: int = 24,
    head_dim: int = 128,
    mlp_ratio: float = 4.0,
    text_dim: int = 4096,
    subfolders: Mapping[str | None, str] | None = None,
    **config: Any,
) -> Base:
    """The site table of a HunyuanVideo transformer of width heads x head_dim.

    Args:
        num_layers: blocks with two streams.
        num_single_layers: blocks with one stream; they are counted on from the former.
        config: further arguments of diffusers' HunyuanVideoTransformer3DModel.
    """
    dim = heads * head_dim
    mlp = int(dim * mlp_ratio)
    shapes = {
        "img_mod.linear": (6 * dim, dim), "txt_mod.linear": (6 * dim, dim), "modulation.linear": (3 * dim, dim),
        "img_attn_qkv": (3 * dim, dim), "txt_attn_qkv": (3 * dim, dim),
        "img_attn_proj": (dim, dim), "txt_attn_proj": (dim, dim),
        "img_mlp.fc1": (mlp, dim), "txt_mlp.fc1": (mlp, dim), "img_mlp.fc2": (dim, mlp), "txt_mlp.fc2": (dim, mlp),
        "linear1": (3 * dim + mlp, dim), "linear2": (dim, dim + mlp),
    }  # fmt: skip
    sites: list[Site] = []
    stacks = (
        ("double_blocks", "transformer_blocks", num_layers, 0, HUNYUAN_DOUBLE),
        ("single_blocks", "single_transformer_blocks", num_single_layers, num_layers, HUNYUAN_SINGLE),
    )
    for original, diffusers, count, first_block, modules in stacks:
        for layer in range(count):
            for module, layers in modules.items():
                d_out, d_in = shapes[module]
                # The last part takes what the others leave: all have dim rows but proj_mlp and whole layers.
                rows = [dim] * (len(layers) - 1) + [d_out - dim * (len(layers) - 1)]
                parts = tuple(Part(f"{diffusers}.{layer}.{p}", r) for p, r in zip(layers, rows, strict=True))
                name_ = f"{original}.{layer}.{module}"
                sites.append(Site(len(sites), first_block + layer, module, d_out, d_in, name_, parts))
    return Base(
        name=name,
        family="hunyuan",
        sites=tuple(sites),
        diffusers_class="HunyuanVideoTransformer3DModel",
        diffusers_config={
            "num_layers": num_layers,
            "num_single_layers": num_single_layers,
            "num_attention_heads": heads,
            "attention_head_dim": head_dim,
            "mlp_ratio": mlp_ratio,
            "text_embed_dim": text_dim,
            **config,
        },
        subfolders=subfolders or {None: "transformer"},
        text_dim=text_dim,
    )


HUNYUAN_BASES: dict[str, Base] = {
    # The released weights come in two forms with the same blocks: token_replace (16 channels) and latent_concat (33).
    "hunyuanvideo-i2v": hunyuan_base(
        "hunyuanvideo-i2v", in_channels=16, out_channels=16, image_condition_type="token_replace", guidance_embeds=True
    )
}


def _build(name: str, config: Mapping[str, Any], subfolders: Mapping[str | None, str]) -> Base:
    rest = dict(config)
    sizes = {
        "num_layers": rest.pop("num_layers", 20), "num_single_layers": rest.pop("num_single_layers", 40),
        "heads": rest.pop("num_attention_heads", 24), "head_dim": rest.pop("attention_head_dim", 128),
        "mlp_ratio": rest.pop("mlp_ratio", 4.0), "text_dim": rest.pop("text_embed_dim", 4096),
    }  # fmt: skip
    return hunyuan_base(name, subfolders=subfolders, **sizes, **rest)


def _identity(config: Mapping[str, Any]) -> tuple[Any, ...]:
    sizes = (
        "num_layers", "num_single_layers", "num_attention_heads", "attention_head_dim", "mlp_ratio", "text_embed_dim",
    )  # fmt: skip
    defaults = (20, 40, 24, 128, 4.0, 4096)
    return (
        *(config.get(key, default) for key, default in zip(sizes, defaults, strict=True)),
        config.get("image_condition_type") is not None,
    )


def _configs(shapes: Shapes) -> list[dict[str, Any]]:
    original = "double_blocks.0.img_attn_qkv.weight" in shapes
    double, single = ("double_blocks.", "single_blocks.") if original else (
        "transformer_blocks.", "single_transformer_blocks.")  # fmt: skip
    names = (
        (f"{double}0.txt_attn_proj", f"{double}0.img_mlp.fc1", "img_in.proj", "txt_in.input_embedder")
        if original
        else (f"{double}0.attn.to_add_out", f"{double}0.ff.net.0.proj", "x_embedder.proj", "context_embedder.proj_in")
    )
    proj, mlp, patch, text = (shapes.get(f"{name}.weight") for name in names)
    if proj is None or mlp is None or patch is None or text is None or len(patch) != 5:
        return []
    dim, in_channels = proj[0], patch[1]
    guidance = any(name.startswith(("guidance_in.", "time_text_embed.guidance_embedder.")) for name in shapes)
    return [
        {
            "num_layers": count_blocks(shapes, double), "num_single_layers": count_blocks(shapes, single),
            "num_attention_heads": dim // head_dim, "attention_head_dim": head_dim, "mlp_ratio": mlp[0] / dim,
            "text_embed_dim": text[1], "in_channels": in_channels, "guidance_embeds": guidance,
            # Text-to-video weights have the same shapes as token_replace; the site table is the same as well.
            "image_condition_type": "token_replace" if in_channels == 16 else "latent_concat",
        }
        for head_dim in head_dims(dim, preferred=128)
    ]  # fmt: skip


HUNYUAN = Family("hunyuan", "HunyuanVideoTransformer3DModel", HUNYUAN_BASES, _build, _identity, _configs)
