"""What workers of a tiny job run; it imports nothing heavy, as every worker does so anew."""

import contextlib
import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from p2e.bases import WeightReader
from p2e.bases.base import Base
from p2e.config import TrainConfig
from p2e.lora.prepared import PreparedLibrary
from p2e.text import TextStates
from ray_jobs.training.config import TrainJob
from ray_jobs.training.engine import Engine
from ray_jobs.training.inputs import Inputs
from ray_jobs.training.loggers import Loggers
from ray_jobs.training.loop import Worker
from ray_jobs.training.storage import LIST

__all__ = ["FullDisk", "KeptEncoder", "TinyInputs", "train_stages"]


@dataclass
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


class Unsaved(Worker):
    """A worker that starts anew and writes no checkpoints, so that several runs fit one worker group."""

    def _restored(self) -> Engine:
        return Engine(self.run_, self.job.zero, self.slots, self.rank)

    def _save(self, values: dict[str, float], loggers: Loggers | None) -> None:
        pass


def train_stages(settings: dict[str, Any]) -> None:
    """A training loop of Ray Train: trains several jobs, one after the other, on the same workers."""
    for job in settings["jobs"]:
        Unsaved(TrainJob.parse(job), settings["opened"]).run()


class FullDisk(LocalFileSystem):
    """A local disk that is full while the file `full` is in its `folder`: for the controller's list of checkpoints if
    the file says "list", for everything else if it says "rest". Whoever feels it leaves a file `felt-list`, say."""

    protocol = "fulldisk"
    cachable = False

    def __init__(self, folder: str = "", **options: Any) -> None:
        super().__init__(**options)
        self.folder = folder

    def _open(self, path: str, mode: str = "rb", *arguments: Any, **options: Any) -> Any:
        kind = "list" if path.endswith(LIST) else "rest"
        with contextlib.suppress(FileNotFoundError):
            if "w" in mode and Path(self.folder, "full").read_text() == kind:
                Path(self.folder, f"felt-{kind}").touch()
                raise OSError(errno.ENOSPC, "No space left on device", path)
        return super()._open(path, mode, *arguments, **options)
