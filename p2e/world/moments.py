"""Moments of the world's base: a few clips of each training effect, under its LoRA (`p2e.adapt.moments`)."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from p2e.adapt.flow import Clips, sample_times
from p2e.adapt.moments import write_moments
from p2e.bases.base import Base
from p2e.lora.formats import read_lora
from p2e.text import TextStates
from p2e.world.config import WorldMomentsConfig
from p2e.world.effects import EFFECTS, effect_index
from p2e.world.library import effect_data
from p2e.world.table.spec import UNSEEN

__all__ = ["measure_moments"]


def measure_moments(
    config: WorldMomentsConfig, out: Path, base: Base, transformer: Any, vae: Any, text: Mapping[str, TextStates],
    path: Path,
) -> float:  # fmt: skip
    """Measures the moments on the library of `out` and writes them to `path` -> the mean loss.

    Args:
        text: effect name -> token states of its prompts, the training paraphrases first.
    """
    folder = out / "library" / "loras"
    trained = [spec.name for spec in EFFECTS if spec.split == "train"]
    # A library may hold some of the effects only.
    names = [name for name in trained if (folder / f"{name}.safetensors").exists()][: config.effects]
    device = next(transformer.parameters()).device
    parts = [names[start : start + config.at_once] for start in range(0, len(names), config.at_once)]
    loras = ([read_lora(folder / f"{name}.safetensors", base) for name in part] for part in parts)
    words = {name: text[name][: len(text[name].mask) - UNSEEN] for name in names}
    return write_moments(path, base, transformer, loras, _batches(config, parts, vae, words, device), device)


def _batches(
    config: WorldMomentsConfig, parts: Sequence[Sequence[str]], vae: Any, words: dict[str, TextStates],
    device: torch.device,
) -> Iterator[Clips]:  # fmt: skip
    generator = torch.Generator(device).manual_seed(config.seed)
    for names in parts:
        data = effect_data([effect_index(name) for name in names], config.clips, vae, words, device)
        groups, clips = data.latents.shape[:2]
        prompt = torch.randint(data.text.shape[1], (groups, clips), generator=generator, device=device)
        text = data.text[torch.arange(groups, device=device)[:, None], prompt].flatten(0, 1).float()
        x, condition = data.latents.flatten(0, 1).float(), data.condition.flatten(0, 1).float()
        times = sample_times(len(x), generator, device, shift=config.shift)
        noise = torch.randn(x.shape, generator=generator, device=device)
        yield Clips(x, condition, text, times, noise)
