"""LoRA files of every family, at a small size, and what diffusers makes of them."""

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor

from p2e.bases.base import Base, Site
from p2e.bases.wan import wan_base
from p2e.lora.lora import Factors, Lora

Pairs = dict[str, tuple[Tensor, Tensor]]  # site key -> A, B as stored

RANK = 4
PIPELINES = {
    "wan": "WanImageToVideoPipeline",
    "ltx": "LTXImageToVideoPipeline",
    "hunyuan": "HunyuanVideoImageToVideoPipeline",
    "cogvideox": "CogVideoXImageToVideoPipeline",
}


def small_wan(*, image: bool = False, num_layers: int = 2, experts: bool = False) -> Base:
    folders: dict[str | None, str] | None = None
    if experts:
        folders = {"high_noise": "transformer", "low_noise": "transformer_2"}
    return wan_base(
        "small-wan", num_layers=num_layers, heads=2, head_dim=16, ffn=48, in_channels=36, out_channels=16,
        image_dim=8 if image else None, subfolders=folders, text_dim=12, freq_dim=16,
    )  # fmt: skip


def random_pairs(sites: Iterable[Site], rank: int = RANK, seed: int = 0) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    return {
        site.key: (
            torch.randn(rank, site.d_in, generator=generator),
            torch.randn(site.d_out, rank, generator=generator),
        )
        for site in sites
    }


def random_lora(base: Base, ranks: Mapping[str, int], seed: int = 0) -> Lora:
    """A LoRA whose sites have the given ranks."""
    pairs = {key: random_pairs([base.by_key[key]], rank, seed + i)[key] for i, (key, rank) in enumerate(ranks.items())}
    return Lora(base.name, {key: Factors(a, b) for key, (a, b) in pairs.items()})


def original_file(pairs: Pairs, *, prefix: str = "diffusion_model.", adapter: str = "") -> dict[str, Tensor]:
    """F1, and with other prefixes F6 and F7."""
    tensors: dict[str, Tensor] = {}
    for key, (a, b) in pairs.items():
        tensors[f"{prefix}{key}.lora_A{adapter}.weight"] = a
        tensors[f"{prefix}{key}.lora_B{adapter}.weight"] = b
    return tensors


def down_up_file(pairs: Pairs, *, prefix: str = "diffusion_model.", alpha: float | None = 1.0) -> dict[str, Tensor]:
    """F2; with the prefix "lora_unet_" F3, with "lora_unet__" F4."""
    tensors: dict[str, Tensor] = {}
    for key, (a, b) in pairs.items():
        layer = prefix + (key.replace(".", "_") if prefix.startswith("lora_unet_") else key)
        tensors[f"{layer}.lora_down.weight"] = a
        tensors[f"{layer}.lora_up.weight"] = b
        if alpha is not None:
            tensors[f"{layer}.alpha"] = torch.tensor(alpha)
    return tensors


def diffusers_file(base: Base, pairs: Pairs, *, prefix: str = "transformer.") -> dict[str, Tensor]:
    """F5; without a prefix F9. Only for bases that fuse nothing."""
    tensors: dict[str, Tensor] = {}
    for key, (a, b) in pairs.items():
        (part,) = base.by_key[key].parts
        tensors[f"{prefix}{part.name}.lora_A.weight"] = a
        tensors[f"{prefix}{part.name}.lora_B.weight"] = b
    return tensors


def header(**settings: Any) -> dict[str, str]:
    """The header entry in which diffusers keeps a LoraConfig."""
    return {"lora_adapter_metadata": json.dumps({f"transformer.{name}": value for name, value in settings.items()})}


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    # Cloned: a fused layer's A may stand under several names, and safetensors refuses shared memory.
    save_file({name: t.clone().contiguous() for name, t in tensors.items()}, path, {"format": "pt", **(metadata or {})})
    return path


def pipeline(base: Base) -> Any:
    """The image-to-video pipeline of a base's family, with nothing but a random transformer."""
    torch.manual_seed(0)
    kind = getattr(diffusers, PIPELINES[base.family])
    transformer = getattr(diffusers, base.diffusers_class)(**base.diffusers_config)
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    required = {p.name: None for p in parameters if p.default is inspect.Parameter.empty}
    return kind(**{**required, "transformer": transformer})


def diffusers_updates(pipe: Any, transformer: Any = None) -> dict[str, Tensor]:
    """Layer -> B A scaling, for every layer that carries an adapter."""
    return {
        name: (layer.lora_B[adapter].weight @ layer.lora_A[adapter].weight * layer.scaling[adapter]).detach()
        for name, layer, adapter in adapted_layers(transformer or pipe.transformer)
    }


def diffusers_biases(pipe: Any) -> dict[str, Tensor]:
    """Layer -> bias of its update, for every layer that carries one."""
    return {
        name: layer.lora_B[adapter].bias.detach() * layer.scaling[adapter]
        for name, layer, adapter in adapted_layers(pipe.transformer)
        if layer.lora_B[adapter].bias is not None
    }


def adapted_layers(transformer: Any) -> Iterator[tuple[str, Any, str]]:
    """(name, layer, adapter) of every layer of a transformer that carries an adapter; one adapter is expected."""
    for name, layer in transformer.named_modules():
        if isinstance(layer, LoraLayer):
            (adapter,) = layer.lora_A
            yield name, layer, adapter


def our_updates(base: Base, lora: Lora) -> dict[str, Tensor]:
    """Diffusers layer -> B A, from p2e's factors."""
    updates: dict[str, Tensor] = {}
    for key, factors in lora.factors.items():
        row = 0
        for part in base.by_key[key].parts:
            updates[part.name] = factors.delta()[row : row + part.rows]
            row += part.rows
    return updates


def assert_same_updates(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], count: int) -> None:
    """The same `count` layers, each with the same update to 1e-6 of its largest entry; a no-op does not pass."""
    assert len(ours) == count
    assert set(ours) == set(theirs)
    for name, update in ours.items():
        limit = theirs[name].abs().max()
        assert limit > 0, name
        assert (update - theirs[name]).abs().max() <= 1e-6 * max(limit, 1.0), name
