"""A base with weights, a prepared library and an encoder, all tiny and on disk, to train and predict with in tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tiny import tiny_base

from p2e.bases import WeightReader
from p2e.bases.base import Base
from p2e.config import TrainConfig
from p2e.files import write_safetensors
from p2e.lora.formats import write_lora
from p2e.lora.lora import Factors, Lora
from p2e.lora.manifest import Manifest
from p2e.lora.prepare import prepare_library
from p2e.lora.prepared import PreparedLibrary
from p2e.text import TextStates
from p2e.training.loop import Trainer

TEXT_DIM = 384
RANK = 4
SMALL: dict[str, Any] = {"width": 32, "layers": 2, "heads": 4, "latents": 4, "rank": RANK, "ffn_ratio": 2}


class HashedEncoder:
    """Token states that are a fixed random vector a word: equal words have equal states."""

    width = TEXT_DIM

    def encode(self, prompts: Sequence[str]) -> TextStates:
        states, mask = torch.zeros(len(prompts), 8, TEXT_DIM), torch.zeros(len(prompts), 8, dtype=torch.bool)
        for i, prompt in enumerate(prompts):
            for j, word in enumerate(prompt.split()[:8]):
                generator = torch.Generator().manual_seed(sum(ord(c) * 31**k for k, c in enumerate(word)) % 2**31)
                states[i, j] = torch.randn(TEXT_DIM, generator=generator)
                mask[i, j] = True
        return TextStates(states, mask)


def tiny_weights(folder: Path, base: Base, seed: int = 0) -> WeightReader:
    """Random weights of every site in one safetensors file under original names."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        f"{site.name}.weight": torch.randn(site.d_out, site.d_in, generator=generator) * 0.02 for site in base.sites
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "diffusion_pytorch_model.safetensors", weights)
    return WeightReader(base, folder)


def tiny_library(
    folder: Path, base: Base, weights: WeightReader, train: int = 6, uncovered: str = ""
) -> PreparedLibrary:
    """A prepared library whose updates are a function of W0 and of the effect, with two held-out effects.

    Args:
        uncovered: a module that the first effect does not adapt.
    """
    words = ("red", "blue", "spin", "melt", "fly", "glow", "zoom", "ripple")[: train + 2]
    entries = []
    for e, word in enumerate(words):
        generator = torch.Generator().manual_seed(100 + e)
        mix = torch.randn(RANK, generator=generator)
        factors = {}
        for site in base.sites:
            if e or site.module != uncovered:
                w0 = weights.read(site)
                scale = (1 + torch.arange(RANK)) / RANK
                factors[site.key] = Factors(w0[:RANK] * (scale * mix)[:, None], w0[:, :RANK].clone() * scale)
        path = folder / "loras" / f"{word}.safetensors"
        write_lora(path, Lora(base.name, factors), base, dtype=torch.float32)
        prompts = [f"the picture will {word}", f"make {word} happen now"]
        split = "train" if e < train else "heldout"
        entries.append(
            {"effect": f"effect_{e}", "prompts": prompts, "lora": f"loras/{word}.safetensors", "split": split}
        )
    manifest = folder / "manifest.yaml"
    manifest.write_text(yaml.safe_dump({"base": base.name, "entries": entries}))
    return prepare_library(Manifest.load(manifest), folder / "prepared", base=base, rank=RANK)


class TinyRun:
    """Everything a Trainer takes, on disk below one folder."""

    def __init__(self, folder: Path, *, uncovered: str = "") -> None:
        self.folder = folder
        self.base = tiny_base("toy")
        self.weights = tiny_weights(folder / "base", self.base)
        self.library = tiny_library(folder / "library", self.base, self.weights, uncovered=uncovered)
        self.encoder = HashedEncoder()

    def config(self, output: str = "run", **changes: Any) -> TrainConfig:
        """A configuration of seconds; `hypernet` changes are merged into SMALL."""
        values: dict[str, Any] = {
            "library": str(self.folder / "library" / "prepared"), "base": "toy", "output": str(self.folder / output),
            "hypernet": SMALL | changes.pop("hypernet", {}), "steps": 30, "sites_per_step": 6, "effects_per_step": 3,
            "learning_rate": 3e-3, "warmup_fraction": 0.1, "log_every": 1, "device": "cpu", "tensorboard": False,
            "loss": {"update": 0.5},
        }  # fmt: skip
        return TrainConfig.parse(values | changes)

    def trainer(self, output: str = "run", **changes: Any) -> Trainer:
        return Trainer(self.config(output, **changes), self.base, self.weights, self.library, self.encoder)
