"""Stages 5 and 6 of the world: the prepared library, the hypernetwork trained on it, and its zero-shot fidelity."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from p2e.bases import WeightReader
from p2e.config import HypernetConfig, LossConfig, TrainConfig
from p2e.hypernet.checkpoint import load_checkpoint
from p2e.lora.library import Manifest, prepare_library
from p2e.lora.lora import Lora
from p2e.lora.prepared import PreparedLibrary
from p2e.predict import predict_loras
from p2e.text import TextStates
from p2e.training.loop import Trainer
from p2e.world.effects import EFFECTS

__all__ = ["WORLD_HYPERNET", "KeptEncoder", "predict_effects", "prepare_world", "train_hypernet"]

WORLD_HYPERNET = TrainConfig(
    library="prepared", output="checkpoint",
    hypernet=HypernetConfig(width=256, layers=6, heads=8, latents=32, rank=4),
    loss=LossConfig(update=0.5),
    steps=12_000, sites_per_step=20, effects_per_step=32, learning_rate=1e-3, warmup_fraction=0.02, decay="cosine",
    ema=0.999, precision="bfloat16", checkpoint_precision="bfloat16", cuda_graph=True, tensorboard=False, log_every=500,
)  # fmt: skip


class KeptEncoder:
    """The world's encoder for prompts whose token states are kept: a GPU machine then needs no text model.

    Args:
        text: effect name -> token states of its prompts; of all effects, or of those that will be asked for.
    """

    width = 384

    def __init__(self, text: Mapping[str, TextStates]) -> None:
        self._rows = {
            prompt: (text[spec.name].states[i], text[spec.name].mask[i])
            for spec in EFFECTS
            if spec.name in text
            for i, prompt in enumerate(spec.prompts)
        }

    def encode(self, prompts: Sequence[str]) -> TextStates:
        rows = [self._rows[prompt] for prompt in prompts]
        return TextStates(torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows]))


def prepare_world(out: Path, base: Any, rank: int, device: str) -> PreparedLibrary:
    """Canonical targets of the library in `out`, beside it."""
    manifest = Manifest.load(out / "library" / "manifest.yaml")
    return prepare_library(manifest, out / "prepared", base=base, rank=rank, device=device)


def train_hypernet(out: Path, base: Any, text: Mapping[str, TextStates], changes: Mapping[str, Any],
                   name: str = "checkpoint") -> Path:  # fmt: skip
    """Trains the world's hypernetwork on the prepared library of `out`, into out/name.

    Args:
        changes: settings that differ from WORLD_HYPERNET; nested ones as mappings.
    """
    values = WORLD_HYPERNET.model_dump()
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, Mapping) else value
    values |= {"library": str(out / "prepared"), "output": str(out / name), "base": str(out / "base")}
    config = TrainConfig.parse(values)
    weights = WeightReader(base, out / "base")
    trainer = Trainer(config, base, weights, PreparedLibrary.open(config.library), KeptEncoder(text))
    folder = trainer.run()
    (folder / "history.json").write_text(json.dumps({"history": trainer.history, "final": trainer.evaluate()}))
    return folder


def predict_effects(out: Path, base: Any, text: Mapping[str, TextStates], names: Sequence[str], prompt: int = -1,
                    checkpoint: str = "checkpoint", device: str = "cpu") -> list[Lora]:  # fmt: skip
    """The predicted LoRA of each effect, for its prompt number `prompt` (the last was never trained on)."""
    loaded = load_checkpoint(out / checkpoint, device)
    prompts = [spec.prompts[prompt] for name in names for spec in EFFECTS if spec.name == name]
    return predict_loras(loaded, WeightReader(base, out / "base"), prompts, KeptEncoder(text))
