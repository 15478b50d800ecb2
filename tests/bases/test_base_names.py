"""Original against diffusers names, by diffusers' own converters of single files: an independent check."""

from collections.abc import Callable

import pytest
import torch
from diffusers.loaders import single_file_utils as converters
from torch import Tensor

from p2e.bases import get_base

CONVERTERS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "wan2.1-i2v-14b": converters.convert_wan_transformer_to_diffusers,
    "wan2.1-t2v-1.3b": converters.convert_wan_transformer_to_diffusers,
    "world": converters.convert_wan_transformer_to_diffusers,
    "ltx-video": converters.convert_ltx_transformer_checkpoint_to_diffusers,
    "hunyuanvideo-i2v": converters.convert_hunyuan_video_transformer_to_diffusers,
}


@pytest.mark.parametrize(
    ("name", "prefix"),
    # The converter of HunyuanVideo takes no prefix.
    [(name, "") for name in CONVERTERS] + [(name, "model.diffusion_model.") for name in ("world", "ltx-video")],
)
def test_parts_are_what_diffusers_converts_to(name: str, prefix: str) -> None:
    base = get_base(name)
    generator = torch.Generator().manual_seed(0)
    # One column is enough: the converters rename and split rows.
    original = {site.name: torch.rand(site.d_out, 1, generator=generator) for site in base.sites}
    converted = CONVERTERS[name]({f"{prefix}{key}.weight": tensor for key, tensor in original.items()})
    assert set(converted) == {f"{part}.weight" for _, part in base.by_part}
    for (_, part), (site, row) in base.by_part.items():
        rows = next(p.rows for p in site.parts if p.name == part)
        assert torch.equal(converted[f"{part}.weight"], original[site.name][row : row + rows]), part
