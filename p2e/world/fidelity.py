"""Columns of the fidelity table: for each, a LoRA an effect, rendered on the evaluation scenes and held to the truth.

    cap        the truth itself, encoded and decoded: what the autoencoder allows
    base       no LoRA
    lora       the library's LoRA
    zero       predicted from a paraphrase that training never saw; zero:NAME by the checkpoint of that name
    random     predicted from the prompt of another effect
    mean       the mean of the library's training LoRAs
    nearest    the training LoRA whose training prompts hold the nearest one

Every column gets the same text, noise and scenes, so they differ by the LoRA alone.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from p2e.bases.base import Base
from p2e.errors import InputError
from p2e.lora.formats import read_lora
from p2e.lora.lora import Lora
from p2e.text import TextStates
from p2e.world.config import WorldMeasureConfig
from p2e.world.controls import mean_lora, nearest_effects
from p2e.world.effects import EFFECTS, EffectSpec
from p2e.world.evaluate import decoder_cap, draw_evaluation, measure
from p2e.world.hypernet import predict_effects
from p2e.world.parallel import Worker

__all__ = ["COLUMNS", "measure_columns"]

COLUMNS = ("cap", "base", "lora", "zero", "random", "mean", "nearest")
MEAN_RANK = 32
OTHER = 37  # the random prompt is that of the effect so many rows further; no two neighbours are so far apart


class Loras:
    """The LoRAs of each column for some effects."""

    def __init__(self, out: Path, base: Base, states: Mapping[str, TextStates], device: str) -> None:
        self.out, self.base, self.states, self.device = out, base, states, device
        self.train = [
            spec.name for spec in EFFECTS if spec.split == "train" and self._path(spec.name).exists()
        ]  # a library may hold some of the effects only

    def _path(self, name: str) -> Path:
        return self.out / "library" / "loras" / f"{name}.safetensors"

    def _read(self, names: Sequence[str]) -> list[Lora]:
        return [read_lora(self._path(name), self.base) for name in names]

    def of(self, column: str, specs: Sequence[EffectSpec]) -> list[Lora] | None:
        """One LoRA an effect, None for the bare base.

        Raises:
            InputError: there is no such column.
        """
        kind, _, checkpoint = column.partition(":")
        names = [spec.name for spec in specs]
        if kind == "base":
            return None
        if kind == "lora":
            return self._read(names)
        if kind in ("zero", "random"):
            if kind == "random":
                order = [spec.name for spec in EFFECTS]
                names = [order[(order.index(name) + OTHER) % len(order)] for name in names]
            return predict_effects(
                self.out, self.base, self.states, names, checkpoint=checkpoint or "checkpoint", device=self.device
            )
        if kind == "mean":
            return [mean_lora(self._read(self.train), MEAN_RANK)] * len(specs)
        if kind == "nearest":
            library = {
                spec.name: self.states[spec.name][: len(spec.train_prompts)]
                for spec in EFFECTS
                if spec.name in self.train
            }
            last = [self.states[name][-1:] for name in names]
            wanted = TextStates(torch.cat([t.states for t in last]), torch.cat([t.mask for t in last]))
            return self._read(nearest_effects(wanted, library))
        raise InputError(f"no column is named {column!r}; the columns are {', '.join(COLUMNS)}")


def measure_columns(
    config: WorldMeasureConfig, out: Path, worker: Worker, base: Base, transformer: Any, vae: Any,
    states: Mapping[str, TextStates], target: Path,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Measures the columns of the configuration, the effects shared out over the workers.

    Args:
        states: effect name -> token states of its prompts, the training paraphrases first.

    Returns:
        Effect -> {column: mean fidelity, split, category}: the file `target`, to which the new columns are added.
    """
    from diffusers import UniPCMultistepScheduler

    specs = EFFECTS[: config.effects : config.every]
    mine = specs[worker.rank :: worker.size]
    scheduler = UniPCMultistepScheduler.from_pretrained(out / "base" / "scheduler")
    loras = Loras(out, base, states, str(worker.device))
    part: dict[str, dict[str, float]] = {spec.name: {} for spec in mine}
    if mine:
        data = draw_evaluation([EFFECTS.index(spec) for spec in mine], config.scenes, vae, worker.device)
        text = torch.stack([states[spec.name].states[-1] for spec in mine])
        for column in config.columns:
            if column == "cap":
                scores = decoder_cap(data, vae)
            else:
                chosen = loras.of(column, mine)
                scores = measure(data, text, chosen, base, transformer, vae, scheduler)[0]
            for spec, score in zip(mine, scores.mean(1).tolist(), strict=True):
                part[spec.name][column] = score
    target.with_suffix(f".{worker.rank}.part").write_text(json.dumps(part))
    worker.mean(torch.zeros(1, device=worker.device)).item()  # waits for the others, whose files are then there
    if not worker.is_first:
        return {}
    rows: dict[str, dict[str, Any]] = json.loads(target.read_text()) if target.exists() else {}
    for rank in range(worker.size):
        kept = target.with_suffix(f".{rank}.part")
        for name, row in json.loads(kept.read_text()).items():
            rows.setdefault(name, {}).update(row)
        kept.unlink()
    for spec in specs:
        rows[spec.name] |= {"split": spec.split, "category": spec.category}
    target.write_text(json.dumps(rows, indent=1) + "\n")
    for split in ("train", "heldout", "ood"):
        chosen_rows = [rows[spec.name] for spec in specs if spec.split == split]
        if chosen_rows:
            means = {c: round(sum(row[c] for row in chosen_rows) / len(chosen_rows), 3) for c in config.columns}
            print("fidelity", split, len(chosen_rows), means, flush=True)
    return rows
