"""Stage 3 of the world: one LoRA an effect, many effects side by side, written as a library in the formats of the wild.

Each effect gets its own clips, drawn once, of scenes that no evaluation shows; its LoRA sees the paraphrases that
training may show.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from p2e.adapt.config import AdaptConfig
from p2e.adapt.grouped import GroupedLoras, LoraForm
from p2e.adapt.train import AdaptData, RunKeeper, train_loras
from p2e.bases.base import Base
from p2e.files import atomic_path, sha256
from p2e.lora.formats import write_lora
from p2e.lora.lora import Factors, Lora
from p2e.text import TextStates
from p2e.world.config import WorldLibraryConfig
from p2e.world.draw import draw_clips
from p2e.world.effects import EFFECTS, EffectSpec, sample_params
from p2e.world.parallel import Worker
from p2e.world.scenes import sample_scenes
from p2e.world.sprites import load_atlas
from p2e.world.train_base import encode_clips

__all__ = ["WILD_FORMATS", "effect_data", "train_effects", "write_library"]

WILD_FORMATS = ("wan", "kohya", "diffusers")  # in turn over the library, so that reading it exercises each
ATTENTION = frozenset(f"{kind}.{part}" for kind in ("self_attn", "cross_attn") for part in "qkvo")
EVERY_ATTENTION, EVERY_DOUBLE = 11, 7  # every so manieth LoRA adapts attention alone, or has twice the rank
CLIP_SEED = 50_000


def wild_form(index: int, rank: int) -> LoraForm:
    """Rank and sites of the LoRA of effect number `index`: mostly `rank` and all sites, as libraries of the wild are
    mixed, some of twice the rank and a few of attention alone."""
    return LoraForm(
        2 * rank if index % EVERY_DOUBLE == EVERY_DOUBLE - 1 else rank,
        ATTENTION if index % EVERY_ATTENTION == EVERY_ATTENTION - 1 else None,
    )


def effect_data(
    indices: Sequence[int], clips: int, vae: Any, text: dict[str, TextStates], device: torch.device
) -> AdaptData:
    """Latents, conditions and training paraphrases of the effects at `indices` of EFFECTS.

    The scenes are the same for all effects: what differs between two LoRAs is then the effect alone.

    Args:
        text: effect name -> token states of its training paraphrases.
    """
    atlas = load_atlas(device)
    latents, conditions = [], []
    for index in indices:
        generator = torch.Generator(device).manual_seed(CLIP_SEED)
        scenes = sample_scenes(clips, generator, device)
        drawn = draw_clips(scenes, sample_params(index, clips, generator, device), atlas)
        x, c = encode_clips(vae, drawn)
        latents.append(x)
        conditions.append(c)
    words = [text[EFFECTS[index].name].states for index in indices]
    count = max(map(len, words))  # effects with fewer wordings repeat theirs
    states = torch.stack([w[torch.arange(count) % len(w)] for w in words]).to(device, torch.bfloat16)
    return AdaptData(torch.stack(latents), torch.stack(conditions), states)


def train_effects(
    indices: Sequence[int], base: Base, transformer: Any, vae: Any, text: dict[str, TextStates], worker: Worker,
    config: WorldLibraryConfig, *, adapt: AdaptConfig | None = None, init: Sequence[Lora] | None = None,
    wild: bool = False, keeper: RunKeeper | None = None,
) -> tuple[list[Lora], Tensor]:  # fmt: skip
    """LoRAs of the effects at `indices`, the work spread over the workers, all of them returned on every worker.

    Args:
        adapt: the recipe, where it is not the library's own.
        init: begin from these, one an effect.
        wild: ranks and sites as `wild_form` mixes them; else the recipe's rank everywhere.
        keeper: saves the run of this worker and puts it back.

    Returns:
        The LoRAs, in the order of `indices`, and the mean loss of each over its last steps [len(indices)].
    """
    recipe = adapt or config.adapt
    share = -(-len(indices) // worker.size)  # every worker takes as many, so that shapes agree; the last repeat
    padded = [*indices, *[indices[-1]] * (share * worker.size - len(indices))]
    mine = list(range(worker.rank * share, (worker.rank + 1) * share))
    words = {name: states[: config.wordings] for name, states in text.items()}
    data = effect_data([padded[i] for i in mine], config.clips, vae, words, worker.device)
    start = None if init is None else [init[min(i, len(indices) - 1)] for i in mine]
    forms = [wild_form(i, recipe.rank) if wild else LoraForm(recipe.rank) for i in padded]
    loras = GroupedLoras(
        base, share, max(form.rank for form in forms), device=worker.device, shared_start=recipe.shared_start,
        init=start, forms=[forms[i] for i in mine],
        seed=recipe.seed if recipe.shared_start else recipe.seed + worker.rank,
    )  # fmt: skip

    def report(step: int, losses: Tensor) -> None:
        if worker.is_first and (step + 1) % 200 == 0:
            print(f"loras {step + 1} loss {losses.mean().item():.4f}", flush=True)

    losses = train_loras(
        transformer, loras, data, recipe, on_step=report, compiled=worker.device.type == "cuda", keeper=keeper
    )
    gathered = {key: (worker.gather(a), worker.gather(b)) for key, (a, b) in loras.factors.items()}
    everyone = worker.gather(losses)[: len(indices)]
    whole = [
        Lora(base.name, {key: Factors(a[i].cpu(), b[i].cpu()) for key, (a, b) in gathered.items()})
        for i in range(len(indices))
    ]
    result = [form.cut(lora, base) for form, lora in zip(forms, whole, strict=False)]
    return result, everyone.cpu()


def write_library(
    specs: Sequence[EffectSpec], loras: Sequence[Lora], base: Base, out: Path, metadata: dict[str, str]
) -> Path:
    """Writes the LoRAs, formats in turn, and the manifest that lists them with their training paraphrases."""
    entries = []
    for number, (spec, lora) in enumerate(zip(specs, loras, strict=True)):
        path = out / "loras" / f"{spec.name}.safetensors"
        write_lora(path, lora, base, fmt=WILD_FORMATS[number % len(WILD_FORMATS)], metadata=metadata)
        entries.append(
            {"effect": spec.name, "prompts": list(spec.train_prompts), "lora": f"loras/{path.name}",
             "sha256": sha256(path), "split": spec.split}
        )  # fmt: skip
    manifest = out / "manifest.yaml"
    with atomic_path(manifest) as temporary:
        temporary.write_text(yaml.safe_dump({"base": base.name, "entries": entries}, sort_keys=False, width=120))
    (out / "report.json").write_text(json.dumps(metadata, indent=1))
    return manifest
