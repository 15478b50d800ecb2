"""Recognising a base from its config or, without one, from the names and shapes of its tensors."""

from typing import Any

import diffusers
import pytest
import torch

from p2e.bases import Base, base_names, get_base
from p2e.bases.base import Shapes
from p2e.bases.checkpoint import Checkpoint
from p2e.bases.detect import detect_base
from p2e.bases.registry import FAMILIES
from p2e.errors import FormatError


class Described(Checkpoint):
    """A checkpoint of which only the headers exist, as full-size weights are too large for a test."""

    def __init__(self, shapes: Shapes, config: dict[str, Any] | None = None) -> None:
        super().__init__("model", [])
        self.__dict__.update(shapes=shapes, config=config or {}, tensors={})


def diffusers_shapes(base: Base) -> Shapes:
    with torch.device("meta"):
        model = getattr(diffusers, base.diffusers_class)(**base.diffusers_config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def transformers(base: Base, shapes: Shapes, config: dict[str, Any] | None = None) -> dict[str | None, Checkpoint]:
    return {expert: Described(shapes, config) for expert in base.experts}


@pytest.mark.parametrize("name", base_names())
def test_by_config(name: str) -> None:
    base = get_base(name)
    config = {"_class_name": base.diffusers_class, "_diffusers_version": "0.0", **base.diffusers_config}
    assert detect_base(transformers(base, {}, config)) is base


@pytest.mark.parametrize("name", base_names())
def test_by_diffusers_names_alone(name: str) -> None:
    base = get_base(name)
    assert detect_base(transformers(base, diffusers_shapes(base))) is base


# The layers outside the blocks that original files have, with their shapes at that size.
ORIGINAL_OUTSIDE: dict[str, Shapes] = {
    "wan2.1-i2v-14b": {
        "patch_embedding.weight": (5120, 36, 1, 2, 2), "text_embedding.0.weight": (5120, 4096),
        "head.head.weight": (64, 5120), "img_emb.proj.1.weight": (1280, 1280),
    },
    "wan2.2-i2v-a14b": {
        "patch_embedding.weight": (5120, 36, 1, 2, 2), "text_embedding.0.weight": (5120, 4096),
        "head.head.weight": (64, 5120),
    },
    "wan2.1-t2v-1.3b": {
        "patch_embedding.weight": (1536, 16, 1, 2, 2), "text_embedding.0.weight": (1536, 4096),
        "head.head.weight": (64, 1536),
    },
    "wan2.2-ti2v-5b": {
        "patch_embedding.weight": (3072, 48, 1, 2, 2), "text_embedding.0.weight": (3072, 4096),
        "head.head.weight": (192, 3072),
    },
    "ltx-video": {"patchify_proj.weight": (2048, 128), "caption_projection.linear_1.weight": (2048, 4096)},
    "hunyuanvideo-i2v": {
        "img_in.proj.weight": (3072, 16, 1, 2, 2), "txt_in.input_embedder.weight": (3072, 4096),
        "guidance_in.mlp.0.weight": (3072, 256),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ORIGINAL_OUTSIDE)
def test_by_original_names_alone(name: str) -> None:
    base = get_base(name)
    shapes = {f"{site.name}.weight": (site.d_out, site.d_in) for site in base.sites} | dict(ORIGINAL_OUTSIDE[name])
    assert detect_base(transformers(base, shapes)) is base


def test_both_forms_of_hunyuan_i2v() -> None:
    base = get_base("hunyuanvideo-i2v")
    config = {"_class_name": base.diffusers_class, **base.diffusers_config}
    concat = config | {"in_channels": 33, "image_condition_type": "latent_concat", "guidance_embeds": False}
    assert detect_base(transformers(base, {}, concat)) is base
    text_to_video = config | {"image_condition_type": None}
    assert detect_base(transformers(base, {}, text_to_video)).name == "custom"


def test_other_sizes_get_a_table_of_their_own() -> None:
    config = {
        "_class_name": "LTXVideoTransformer3DModel", "num_layers": 48, "num_attention_heads": 32,
        "attention_head_dim": 128, "cross_attention_dim": 4096,
    }  # fmt: skip
    base = detect_base({None: Described({}, config)})
    assert (base.name, base.family, len(base.sites)) == ("custom", "ltx", 480)
    assert set(base.shapes) == {(4096, 4096), (16384, 4096), (4096, 16384)}
    # The same from its shapes alone, the split into heads included.
    assert detect_base({None: Described(diffusers_shapes(base))}).diffusers_config.items() >= {
        "num_attention_heads": 32, "attention_head_dim": 128, "cross_attention_dim": 4096,
    }.items()  # fmt: skip


def test_no_family_claims_anothers_shapes() -> None:
    for family in FAMILIES:
        for base in family.bases.values():
            shapes = diffusers_shapes(base)
            assert [other.name for other in FAMILIES if other.configs(shapes)] == [family.name]


def test_ltx_with_audio_is_another_model() -> None:
    shapes = {**diffusers_shapes(get_base("ltx-video")), "transformer_blocks.0.audio_attn1.to_q.weight": (2048, 2048)}
    with pytest.raises(FormatError, match="not those of a base"):
        detect_base({None: Described(shapes)})
