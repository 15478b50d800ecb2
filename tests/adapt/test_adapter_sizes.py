"""Every registered base at its full size, without weights: the shapes it takes, and its transformer called on them."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from p2e.adapt.config import FineTuneConfig
from p2e.adapt.encode import grid_of
from p2e.adapt.families import open_adapter
from p2e.bases import base_names, get_base, world_base_folder

FLOW = ("FlowMatchEulerDiscreteScheduler", {"shift": 7.0})
UNIPC = ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 5.0})
DYNAMIC = ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True})
DDIM = ("CogVideoXDDIMScheduler", {"prediction_type": "v_prediction"})
WAN22_VAE = {
    "z_dim": 48, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48, "patch_size": 2, "scale_factor_spatial": 16,
    "in_channels": 12, "out_channels": 12, "is_residual": True, "base_dim": 160, "decoder_base_dim": 256,
}  # fmt: skip
# base -> (autoencoder, entries of model_index.json, scheduler, (frame step, side step), shift at the base's own size)
FULL: dict[str, tuple[dict[str, Any], dict[str, Any], Any, tuple[int, int], float]] = {
    "wan2.1-i2v-14b": ({}, {}, UNIPC, (4, 16), 5.0),
    "wan2.1-t2v-14b": ({}, {}, UNIPC, (4, 16), 5.0),
    "wan2.1-t2v-1.3b": ({}, {}, UNIPC, (4, 16), 5.0),
    "wan2.2-i2v-a14b": ({}, {"boundary_ratio": 0.9}, UNIPC, (4, 16), 5.0),
    "wan2.2-ti2v-5b": (WAN22_VAE, {"expand_timesteps": True}, UNIPC, (4, 32), 5.0),
    "ltx-video": ({}, {}, DYNAMIC, (8, 32), 4.096),
    "hunyuanvideo-i2v": ({}, {}, FLOW, (4, 16), 7.0),
    "cogvideox-5b-i2v": ({"latent_channels": 16, "block_out_channels": [128, 256, 256, 512]}, {}, DDIM, (4, 16), 1.0),
}  # fmt: skip


def described(name: str, folder: Path) -> Path:
    """A pipeline folder of configurations alone."""
    base, (vae, entries, (scheduler, options), _, _) = get_base(name), FULL[name]
    index = {"scheduler": ["diffusers", scheduler], **entries}
    parts: dict[str, dict[str, Any]] = {"vae": vae, "scheduler": options}
    for subfolder in base.subfolders.values():
        parts[subfolder] = {"_class_name": base.diffusers_class, **base.diffusers_config}
    for part, config in parts.items():
        (folder / part).mkdir(parents=True)
        name_ = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part / name_).write_text(json.dumps(config))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_every_base_is_here() -> None:
    assert {*FULL, "world"} == set(base_names())


@pytest.mark.parametrize("name", base_names())
@torch.no_grad()
def test_full_size(name: str, tmp_path: Path) -> None:
    base = get_base(name)
    folder = world_base_folder() if name == "world" else described(name, tmp_path)
    adapter = open_adapter(base, folder, FineTuneConfig())
    steps, shift = ((4, 8), 2.0) if name == "world" else FULL[name][3:]
    assert (adapter.frame_step, adapter.side_step) == steps
    frames, height, width = adapter.size
    assert grid_of(adapter).found(10_000, height, width) == (frames, height, width)
    assert adapter.shift(*adapter.size) == pytest.approx(shift, abs=0.01)
    f, h, w = (frames - 1) // adapter.frame_step + 1, height // adapter.spatial_ratio, width // adapter.spatial_ratio
    channels = adapter.model.get("out_channels") or adapter.model["in_channels"]
    with torch.device("meta"):
        transformer = getattr(diffusers, base.diffusers_class)(**{**base.diffusers_config, **shallow(base)}).bfloat16()
        latents = torch.empty(1, channels, f, h, w)
        tokens = {"cogvideox": 226, "ltx": 128}.get(base.family, 64 if name == "world" else 512)
        batch = {
            "latents": latents, "condition": latents, "first": latents[:, :, :1], "image": torch.empty(1, 257, 1280),
            "text": torch.empty(1, tokens, base.text_dim), "mask": torch.ones(1, tokens), "pooled": torch.empty(1, 768),
        }  # fmt: skip
        answer = adapter.predict(transformer, latents, adapter.objective.timestep(torch.empty(1)), batch)
    assert answer.shape == latents.shape


def shallow(base: Any) -> dict[str, int]:
    """One block is enough for the shapes."""
    return {key: 1 for key in ("num_layers", "num_single_layers") if key in base.diffusers_config}
