"""Keeps the training of many LoRAs on disk, each worker its own share, so that it can be paused and go on."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from p2e.adapt.train import LoraRun
from p2e.world.pause import Pause, Paused
from p2e.world.run_state import RunState

__all__ = ["LoraRunState"]


class LoraRunState:
    """The `RunKeeper` of a stage.

    Args:
        folder: one file a worker is written into it.
        settings: of the run, as plain values; a run with others begins anew, and so does one on more or fewer workers.
    """

    def __init__(self, folder: Path, settings: Any, pause: Pause) -> None:
        self.worker, self.pause, self.begun = pause.worker, pause, 0
        self.path = folder / f"loras-{self.worker.rank}.safetensors"
        self.settings = {"workers": self.worker.size, "settings": settings}

    def _kept(self, run: LoraRun, random: Tensor) -> RunState:
        more = {"random": random, "tail": run.tail}
        return RunState(
            self.path, nn.ParameterList(run.parameters), nn.Module(), [run.optimizer], self.settings, more
        )  # fmt: skip

    def restore(self, run: LoraRun) -> int:
        assert run.generator is not None
        random = run.generator.get_state()
        kept = self._kept(run, random)
        steps = self.worker.gather(torch.tensor([kept.step()], device=self.worker.device))
        if int(steps.min()) != int(steps.max()):
            return 0  # they were cut off while they saved
        self.begun, _ = kept.load()
        run.generator.set_state(random)
        return self.begun

    def look(self, run: LoraRun, step: int) -> None:
        """Raises Paused, with the state saved, where that is due."""
        if step > self.begun and self.pause.due(step):
            assert run.generator is not None
            self._kept(run, run.generator.get_state()).save(step, 0.0)
            raise Paused(f"library: paused after {step} steps")
