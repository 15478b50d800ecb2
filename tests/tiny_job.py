"""A training job of seconds on a small real library, for tests with Ray."""

import functools
from pathlib import Path
from typing import Any

from tiny import tiny_base
from tiny_training import HashedEncoder, TinyRun

from p2e.bases import WeightReader
from p2e.config import TrainConfig
from p2e.lora.prepared import PreparedLibrary
from ray_jobs.training.config import TrainJob
from ray_jobs.training.inputs import Inputs

SETTINGS: dict[str, Any] = {
    "steps": 8, "micro_batches": 4, "sites_per_step": 3, "effects_per_step": 2, "resident_gb": 0, "ema": 0.8,
    "decay": "cosine", "checkpoint_every": 2, "hypernet": {"width": 16, "latents": 2},
}  # fmt: skip


def open_tiny(folder: str, config: TrainConfig) -> Inputs:
    base = tiny_base("toy")
    return Inputs(base, WeightReader(base, f"{folder}/base"), PreparedLibrary.open(config.library), HashedEncoder)


class TinyJob:
    """Jobs on one TinyRun."""

    def __init__(self, folder: Path) -> None:
        self.tiny = TinyRun(folder, uncovered="ffn.0")
        self.folder = folder
        self.opened = functools.partial(open_tiny, str(folder))

    def config(self, output: str, **changes: Any) -> TrainConfig:
        return self.tiny.config(output, **(SETTINGS | changes))

    def job(self, output: str, *, train: dict[str, Any] | None = None, **changes: Any) -> TrainJob:
        config = self.config(output, **(train or {})).model_dump(mode="json")
        values = {"train": config, "gpus": False, "log": {"samples": str(self.folder / f"{output}-samples")},
                  "stream": {"window": 3, "cpus": 0.5}, "max_failures": 2}  # fmt: skip
        return TrainJob.parse(values | changes)
