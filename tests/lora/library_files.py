"""Small LoRA libraries on disk for the tests of this folder."""

from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from torch import Tensor

from p2e.bases.base import Base
from p2e.bases.wan import wan_base
from p2e.files import write_safetensors

TOY = wan_base("toy", num_layers=2, heads=2, head_dim=8, ffn=32, in_channels=16, out_channels=16)
Updates = dict[str, tuple[Tensor, Tensor]]


def updates(seed: int, rank: int = 3, modules: Sequence[str] = (), base: Base = TOY) -> Updates:
    """Random factors in float32 of every site, or of those of the given modules."""
    generator = torch.Generator().manual_seed(seed)
    return {
        site.key: (
            torch.randn(rank, site.d_in, generator=generator),
            torch.randn(site.d_out, rank, generator=generator),
        )
        for site in base.sites
        if not modules or site.module in modules
    }


def write_original(path: Path, factors: Updates) -> None:
    """Keys in original names, `diffusion_model.` in front, no alpha."""
    tensors: dict[str, Tensor] = {}
    for key, (a, b) in factors.items():
        tensors[f"diffusion_model.{key}.lora_A.weight"] = a
        tensors[f"diffusion_model.{key}.lora_B.weight"] = b
    write_safetensors(path, tensors)


def write_kohya(path: Path, factors: Updates, alpha: float) -> None:
    """Keys in kohya's form with an alpha for each layer."""
    tensors: dict[str, Tensor] = {}
    for key, (a, b) in factors.items():
        name = f"lora_unet_{key.replace('.', '_')}"
        tensors |= {
            f"{name}.lora_down.weight": a,
            f"{name}.lora_up.weight": b,
            f"{name}.alpha": torch.tensor(alpha),
        }
    write_safetensors(path, tensors)


def write_manifest(folder: Path, entries: Sequence[dict[str, object]], base: str = "toy") -> Path:
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump({"base": base, "entries": list(entries)}))
    return path


def entry(effect: str, **fields: object) -> dict[str, object]:
    described = {
        "effect": effect,
        "prompts": [f"the picture turns, seen as {effect[::-1]}"],
        "lora": f"loras/{effect}.safetensors",
    }
    return described | fields
