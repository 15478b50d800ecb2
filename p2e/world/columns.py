"""Columns of the fidelity table: what each renders an effect with.

still               no render: the first frame stands still, which has fidelity 0 by definition
cap                 no render: the truth, encoded and decoded; what the autoencoder allows
base                no LoRA
lora, lora:1000     the library's LoRA
lora:N              a LoRA of N steps from scratch, by the library's recipe with the cosine over N steps
zero[:CKPT]         predicted from a prompt that training never saw, by the checkpoint in the folder CKPT
init:N[:CKPT]       that prediction, fine-tuned N steps on the effect's own clips, by the same recipe as lora:N
hdb[:CKPT]          as zero, by the baseline in HyperDreamBooth's style, which is trained on raw factors
random[:CKPT]       predicted from the prompt of another effect
mean                the mean of the library's training LoRAs
nearest             the training LoRA among whose training prompts is the nearest one
softmax[:T]         the mean of the training LoRAs, weighed by softmax(similarity / T) of prompt and effect
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from p2e.bases.base import Base
from p2e.errors import InputError
from p2e.lora.formats import read_lora
from p2e.lora.lora import Lora
from p2e.text import TextStates
from p2e.world.config import WorldLibraryConfig
from p2e.world.controls import mean_lora, nearest_effects, softmax_weights, weighed_lora
from p2e.world.effects import EFFECTS, EffectSpec, effect_index
from p2e.world.hypernet import predict_effects
from p2e.world.library import train_effects
from p2e.world.parallel import Worker

__all__ = ["COLUMNS", "Column", "ColumnLoras", "World"]

COLUMNS = ("still", "cap", "base", "lora", "zero", "init", "hdb", "random", "mean", "nearest", "softmax")
# The checkpoint by default.
PREDICTED = dict.fromkeys(("zero", "init", "random"), "checkpoint") | {"hdb": "ablations/hyperdreambooth"}
LIBRARY_STEPS = 1000
MEAN_RANK = 32
TEMPERATURE = 0.05
OTHER = 37  # the random prompt is that of the effect so many rows further; no two neighbours are so far apart


@dataclass(frozen=True)
class World:
    """A world made so far: what measuring needs of it.

    Attributes:
        out: its folder, with library/ and checkpoints.
        states: effect name -> token states of its prompts, the training paraphrases first; of all effects, or of those
            measured, their random partners and the library's training effects.
    """

    out: Path
    base: Base
    transformer: Any
    vae: Any
    scheduler: Any
    states: Mapping[str, TextStates]
    worker: Worker


@dataclass(frozen=True)
class Column:
    """A column's name taken apart.

    Attributes:
        kind: one of COLUMNS; "lora" is the library's where steps is 0.
        steps: of training, for init:N and lora:N.
        checkpoint: folder of the hypernetwork, for those that predict.
        temperature: of softmax.
    """

    name: str
    kind: str
    steps: int = 0
    checkpoint: str = ""
    temperature: float = TEMPERATURE

    @classmethod
    def parse(cls, name: str) -> "Column":
        """Takes a name apart.

        Raises:
            InputError: no column is called that.
        """
        kind, *rest = name.split(":")
        wrong = InputError(f"no column is named {name!r}; the columns are {', '.join(COLUMNS)}, lora:N, init:N[:CKPT]")
        steps, temperature = 0, TEMPERATURE
        try:
            if kind == "init" or (kind == "lora" and rest):
                steps = int(rest.pop(0))
            if kind == "softmax" and rest:
                temperature = float(rest.pop(0))
        except (ValueError, IndexError):
            raise wrong from None
        checkpoint = PREDICTED.get(kind, "")
        if checkpoint and rest:
            checkpoint = rest.pop(0) or checkpoint
        if kind not in COLUMNS or rest or steps < 0 or (kind == "init" and not steps) or not temperature > 0:
            raise wrong
        return cls(name, kind, 0 if kind == "lora" and steps == LIBRARY_STEPS else steps, checkpoint, temperature)

    @property
    def trained(self) -> bool:
        """Whether LoRAs are trained for it."""
        return bool(self.steps)


def other_effect(name: str) -> str:
    """The effect whose prompt is the random one for `name`."""
    return EFFECTS[(effect_index(name) + OTHER) % len(EFFECTS)].name


class ColumnLoras:
    """Makes the LoRAs of columns.

    Args:
        world: where library and checkpoints lie.
        recipe: how the LoRAs of init:N and lora:N are trained.
    """

    def __init__(self, world: World, recipe: WorldLibraryConfig) -> None:
        self.world, self.recipe = world, recipe
        self.train = [
            spec for spec in EFFECTS if spec.split == "train" and self._path(spec.name).exists()
        ]  # a library may hold some of the effects only
        self._kept: dict[str, Lora] = {}
        self._from_scratch: dict[tuple[str, ...], list[Lora]] = {}
        self._mean: Lora | None = None

    def _path(self, name: str) -> Path:
        return self.world.out / "library" / "loras" / f"{name}.safetensors"

    def _read(self, names: Sequence[str]) -> list[Lora]:
        for name in names:
            if name not in self._kept:
                self._kept[name] = read_lora(self._path(name), self.world.base)
        return [self._kept[name] for name in names]

    def of(self, column: Column, specs: Sequence[EffectSpec], mine: Sequence[EffectSpec], prompt: int) -> list[Lora]:
        """One LoRA for each effect of `mine`, this worker's share of `specs`; every worker must call it at once.

        Args:
            column: one that renders with a LoRA.
            prompt: number of the prompt that predictions and lookups are asked with.
        """
        if column.trained:
            return self._trained(column, specs, mine, prompt)
        names = [spec.name for spec in mine]
        if not names:
            return []
        if column.kind == "lora":
            return self._read(names)
        if column.kind == "random":
            return self._predicted(column, [other_effect(name) for name in names], prompt)
        if column.kind in PREDICTED:
            return self._predicted(column, names, prompt)
        library = {spec.name: self.world.states[spec.name][: len(spec.train_prompts)] for spec in self.train}
        if not library:
            raise InputError(
                f"{self.world.out}: the library has no LoRA of a training effect; {column.name} needs some"
            )
        if column.kind == "mean":
            self._mean = self._mean or mean_lora(self._read(list(library)), MEAN_RANK)
            return [self._mean] * len(names)
        asked = [self.world.states[name] for name in names]
        wanted = TextStates(
            torch.stack([t.states[prompt] for t in asked]), torch.stack([t.mask[prompt] for t in asked])
        )
        if column.kind == "nearest":
            return self._read(nearest_effects(wanted, library))
        weights = softmax_weights(wanted, library, column.temperature)
        return [weighed_lora(self._read(list(library)), row.tolist(), MEAN_RANK) for row in weights]

    def _predicted(self, column: Column, names: Sequence[str], prompt: int) -> list[Lora]:
        world = self.world
        return predict_effects(
            world.out, world.base, world.states, names, prompt, column.checkpoint, str(world.worker.device)
        )

    def _trained(
        self, column: Column, specs: Sequence[EffectSpec], mine: Sequence[EffectSpec], prompt: int
    ) -> list[Lora]:
        """All of the workers train the LoRAs of all `specs`. They have the recipe's rank (or the prediction's, if
        larger) and all sites, whatever form the library's LoRA of the effect has, so that init:N and lora:N compare."""
        world, names = self.world, [spec.name for spec in specs]
        known = (column.name, *names)
        loras = self._from_scratch.get(known)  # which does not depend on the prompt
        if loras is None:
            init = self._predicted(column, names, prompt) if column.kind == "init" else None
            rank = max([self.recipe.adapt.rank, *(lora.rank for lora in init or ())])
            text = {spec.name: world.states[spec.name][: len(spec.train_prompts)] for spec in specs}
            recipe = self.recipe.adapt.model_copy(update={"steps": column.steps, "rank": rank})
            torch.compiler.reset()  # every training brings layers of its own, and compiled ones of old would pile up
            loras, _ = train_effects(
                [effect_index(name) for name in names], world.base, world.transformer, world.vae, text, world.worker,
                self.recipe, adapt=recipe, init=init,
            )  # fmt: skip
            if init is None:
                self._from_scratch[known] = loras
        made = dict(zip(names, loras, strict=True))
        return [made[spec.name] for spec in mine]
