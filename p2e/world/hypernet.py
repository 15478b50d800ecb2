"""Stages 5 and 6 of the world: the prepared library, the hypernetwork trained on it, and its zero-shot fidelity."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from p2e.bases import WeightReader
from p2e.config import AugmentConfig, HypernetConfig, LossConfig, MetricConfig, TextConfig, TrainConfig
from p2e.files import write_text
from p2e.hypernet.checkpoint import load_checkpoint
from p2e.lora.library import Manifest, prepare_library
from p2e.lora.lora import Lora
from p2e.lora.prepared import PreparedLibrary
from p2e.predict import predict_loras
from p2e.text import TextStates
from p2e.training.loop import Trainer
from p2e.world.effects import EFFECTS
from p2e.world.pause import Pause, Paused

__all__ = ["WORLD_HYPERNET", "KeptEncoder", "predict_effects", "prepare_world", "train_hypernet", "world_hypernet"]

WORLD_HYPERNET = TrainConfig(
    library="prepared", output="checkpoint",
    hypernet=HypernetConfig(
        width=384, layers=6, heads=12, latents=32, rank=4,
        # As many anchors as the library has training effects.
        text=TextConfig(form="sentence", whiten="effects", shrink=0.3, anchors=92, temperature=0.03,
                        components=2, hedge=4.0),
    ),
    loss=LossConfig(update=0.5), augment=AugmentConfig(noise=0.5),
    metric=MetricConfig(moments="moments/moments.safetensors"),
    steps=18_000, sites_per_step=20, effects_per_step=32, learning_rate=1e-3, warmup_fraction=0.02, decay="cosine",
    ema=0.999, precision="bfloat16", checkpoint_precision="bfloat16", compile=True, cuda_graph=True, tensorboard=False,
    log_every=500,
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


def prepare_world(out: Path, base: Any, rank: int, device: str, into: Path) -> PreparedLibrary:
    """Canonical targets of the library in `out`, written to the folder `into`."""
    manifest = Manifest.load(out / "library" / "manifest.yaml")
    return prepare_library(manifest, into, base=base, rank=rank, device=device)


def world_hypernet(changes: Mapping[str, Any]) -> TrainConfig:
    """WORLD_HYPERNET with changes; nested ones are mappings.

    Raises:
        ConfigError: a setting is unknown, or its value is wrong.
    """
    values = WORLD_HYPERNET.model_dump()
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(values.get(key), dict)
        values[key] = {**values[key], **value} if nested else value
    return TrainConfig.parse(values, "hypernet")


def anchored(config: TrainConfig, library: PreparedLibrary) -> TrainConfig:
    """The configuration with as many anchors as the library has training effects, where it has any."""
    text = config.hypernet.text
    if text.anchors:
        text = text.model_copy(update={"anchors": sum(effect.split == "train" for effect in library.effects)})
    return config.model_copy(update={"hypernet": config.hypernet.model_copy(update={"text": text})})


def train_hypernet(out: Path, base: Any, text: Mapping[str, TextStates], config: TrainConfig, into: Path,
                   pause: Pause, library: PreparedLibrary | None = None) -> Path:  # fmt: skip
    """Trains the world's hypernetwork, or goes on with the run that `into` holds.

    Args:
        out: the folder of base and prepared library; `library` is another prepared one.

    Raises:
        Paused: it was due; the state is saved.
    """
    prepared = library or PreparedLibrary.open(out / "prepared")
    paths = {"library": prepared.path, "output": str(into), "base": str(out / "base")}
    config = anchored(config.model_copy(update=paths), prepared)
    if config.metric is not None:
        metric = config.metric.model_copy(update={"moments": str(out / config.metric.moments)})
        config = config.model_copy(update={"metric": metric})
    weights = WeightReader(base, out / "base")
    trainer = Trainer(config, base, weights, prepared, KeptEncoder(text))
    file = into / "history.json"
    history = json.loads(file.read_text())["history"] if trainer.step and file.exists() else []
    folder = trainer.run(stop_when=pause.over)
    write_text(file, json.dumps({"history": history + trainer.history, "final": trainer.evaluate()}))
    if trainer.step < config.steps:
        raise Paused(f"hypernet: paused after {trainer.step} of {config.steps} steps")
    return folder


def predict_effects(out: Path, base: Any, text: Mapping[str, TextStates], names: Sequence[str], prompt: int = -1,
                    checkpoint: str = "checkpoint", device: str = "cpu") -> list[Lora]:  # fmt: skip
    """The predicted LoRA of each effect, for its prompt number `prompt` (the last was never trained on)."""
    loaded = load_checkpoint(out / checkpoint, device)
    prompts = [spec.prompts[prompt] for name in names for spec in EFFECTS if spec.name == name]
    return predict_loras(loaded, WeightReader(base, out / "base"), prompts, KeptEncoder(text))
