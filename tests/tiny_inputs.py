"""What workers of a tiny job open; it imports nothing heavy, as every worker does so anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from p2e.bases import WeightReader
from p2e.bases.base import Base
from p2e.config import TrainConfig
from p2e.lora.prepared import PreparedLibrary
from p2e.text import TextStates
from ray_jobs.training.inputs import Inputs

__all__ = ["KeptEncoder", "TinyInputs"]


@dataclass(frozen=True)
class KeptEncoder:
    """Token states [T, D] and mask [T] of the prompts that a library has."""

    rows: Mapping[str, tuple[Tensor, Tensor]]
    width: int

    def encode(self, prompts: Sequence[str]) -> TextStates:
        chosen = [self.rows[prompt] for prompt in prompts]
        return TextStates(torch.stack([row[0] for row in chosen]), torch.stack([row[1] for row in chosen]))


@dataclass(frozen=True)
class TinyInputs:
    """Opens the inputs of a tiny run on any worker."""

    base: Base
    folder: Path
    encoder: KeptEncoder

    def __call__(self, config: TrainConfig) -> Inputs:
        weights = WeightReader(self.base, self.folder / "base")
        return Inputs(self.base, weights, PreparedLibrary.open(config.library), lambda: self.encoder)
