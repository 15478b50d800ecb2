"""Training of the hypernetwork on one device, from a prepared library to a checkpoint."""

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from p2e.bases import WeightReader, open_base
from p2e.bases.base import Base
from p2e.config import TrainConfig
from p2e.errors import ConfigError, InputError
from p2e.hypernet.losses import Losses
from p2e.lora.prepared import PreparedLibrary
from p2e.text import TextEncoder, encoder_for
from p2e.training.data import ResidentSource
from p2e.training.report import Reporter
from p2e.training.setup import assemble
from p2e.training.state import load_state, save_state
from p2e.training.step import GraphedStep, Objective, TrainStep, make_optimizer

__all__ = ["Trainer", "train"]

STATE = "training.safetensors"
PLAN_STEPS = 256  # whose indices go to the device together


def train(config: TrainConfig, *, progress: bool = True) -> Path:
    """Trains a hypernetwork, or goes on with the run that `config.output` holds.

    Args:
        config: the run.
        progress: show a bar.

    Returns:
        The checkpoint's folder, `config.output`.

    Raises:
        InputError: base, library and configuration do not fit together, or cannot be read.
        OutputError: the output cannot be written.
    """
    base, weights = open_base(config.base)
    if weights is None:
        raise InputError(f"{config.base}: training reads the base's weights; set base: to the folder that holds them")
    library = PreparedLibrary.open(config.library)
    encoder = encoder_for(base, weights.folder)
    return Trainer(config, base, weights, library, encoder).run(progress=progress)


class Trainer:
    """A run, resumed if its output folder holds its state.

    Args:
        config: the run.
        base, weights: the base and what reads its W0.
        library: the prepared library.
        encoder: the base's text encoder.

    Attributes:
        step: optimizer steps taken so far.
        history: metrics reported so far by this object: step, then the scalars of `Losses` and steps_per_second.
    """

    def __init__(
        self, config: TrainConfig, base: Base, weights: WeightReader, library: PreparedLibrary, encoder: TextEncoder
    ) -> None:
        self.setup = assemble(config, base, weights, library, encoder)
        self.config, self.base, self.library = config, base, library
        self.device, self.dtype = self.setup.device, self.setup.dtype
        self.model, self.source, self.sampler = self.setup.model, self.setup.source, self.setup.sampler
        # The source has fitted the map of the text, so a copy holds it as well.
        self.average = copy.deepcopy(self.model).requires_grad_(False) if config.ema else None
        self.optimizer = make_optimizer(self.model, config)
        self.hashes = self.setup.hashes
        self.output = Path(config.output)
        self.step = 0
        if (self.output / STATE).exists():
            self.step = load_state(self.output / STATE, self.model, self.optimizer, self.average, config, self.hashes)
        self.history: list[dict[str, float]] = []

    def run(
        self, *, until: int | None = None, seconds: float | None = None, stop_when: Callable[[], bool] | None = None,
        progress: bool = False,
    ) -> Path:  # fmt: skip
        """Trains to the end, or to step `until`, or until `seconds` have passed or `stop_when` says so, and saves ->
        the checkpoint's folder.

        The clock is read and `stop_when` asked where losses are logged, so such a run ends up to `log_every` steps
        late.
        """
        stop = min(self.config.steps, until or self.config.steps)
        board = self.output / "tensorboard" if self.config.tensorboard else None
        reporter = Reporter(self.config.steps, self.step, progress, board)
        try:
            if self.step < stop:
                deadline = math.inf if seconds is None else time.perf_counter() + seconds
                self._train(stop, reporter, lambda: time.perf_counter() > deadline or bool(stop_when and stop_when()))
            reporter.scalars(self.step, self.evaluate(), last=True)
            self.save()
        finally:
            reporter.close()
        return self.output

    def _train(self, stop: int, reporter: Reporter, over: Callable[[], bool]) -> None:
        config = self.config
        running = torch.zeros(len(Losses._fields), device=self.device)
        count, since = 0, time.perf_counter()
        for losses in self._steps(stop):
            running += losses
            self.step += 1
            count += 1
            last = self.step == stop
            if last or self.step % config.log_every == 0:
                values = dict(zip(Losses._fields, (running / count).tolist(), strict=True))
                if not math.isfinite(values["loss"]):
                    raise InputError(f"training diverged before step {self.step}; lower learning_rate and start anew")
                values["samples_per_second"] = count * self.setup.pairs / max(time.perf_counter() - since, 1e-9)
                reporter.scalars(self.step, values, last=last)
                self.history.append({"step": self.step, **values})
                running.zero_()
                count, since = 0, time.perf_counter()
                if over():
                    return
            if not last and config.evaluate_every and self.step % config.evaluate_every == 0:
                reporter.scalars(self.step, self.evaluate())
                since = time.perf_counter()
            if not last and config.checkpoint_every and self.step % config.checkpoint_every == 0:
                self.save()
                since = time.perf_counter()

    def _steps(self, stop: int) -> Iterator[Tensor]:
        """Takes the steps up to `stop` -> the scalars of each, on the device."""
        objective: nn.Module = Objective(self.model, self.config.loss, self.dtype)
        if self.config.compile:
            objective = cast(nn.Module, torch.compile(objective, dynamic=False))
        step = TrainStep(objective, self.model, self.optimizer, self.config, self.average)
        resident = isinstance(self.source, ResidentSource)
        graphed = None
        if self.config.cuda_graph:
            if self.device.type != "cuda" or not resident:
                raise ConfigError(
                    "cuda_graph needs a GPU and data within resident_gb; raise it or set cuda_graph: false"
                )
            graphed = GraphedStep(step, self.source, self.sampler)
        parts = self.config.micro_batches
        for start in range(self.step, stop, PLAN_STEPS):
            steps = min(PLAN_STEPS, stop - start)
            rows = self.sampler.plan(start * parts, steps * parts)
            rows = rows.to(self.device) if resident else rows
            batches = iter(()) if graphed else self.source.batches(rows, self.sampler.widths)
            for offset in range(steps):
                step.set_step(start + offset)
                yield graphed(rows[offset]) if graphed else step(*itertools.islice(batches, parts))

    def evaluate(self) -> dict[str, float]:
        """Errors on every split of the library, as `Run.evaluate`."""
        return self.setup.evaluate(self.average or self.model)

    def save(self) -> None:
        """Writes the state, then the checkpoint that it belongs to."""
        save_state(self.output / STATE, self.step, self.model, self.optimizer, self.average, self.config, self.hashes)
        self.setup.save(self.output, self.average or self.model, self.step)
