"""Training of the hypernetwork on one device, from a prepared library to a checkpoint."""

import copy
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
from p2e.hypernet.checkpoint import save_checkpoint
from p2e.hypernet.losses import Losses
from p2e.hypernet.variants import Predictor, build_hypernet
from p2e.lora.prepared import PreparedLibrary
from p2e.text import TextEncoder, encoder_for
from p2e.training.batches import Sampler, share_sites
from p2e.training.data import ResidentSource, open_source
from p2e.training.evaluate import evaluate
from p2e.training.report import Reporter
from p2e.training.state import load_state, save_state
from p2e.training.step import GraphedStep, Objective, TrainStep, make_optimizer

__all__ = ["Trainer", "train"]

STATE = "training.safetensors"
EVALUATED = 32  # effects of a split
PLAN_STEPS = 256  # whose indices go to the device together
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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
        if library.rank != config.hypernet.rank:
            raise ConfigError(f"the library has rank {library.rank}; set hypernet.rank: {library.rank}")
        self.config, self.base, self.library = config, base, library
        self.device = pick_device(config.device)
        self.dtype = DTYPES[config.precision]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model: nn.Module = build_hypernet(config.hypernet, base)
        self.model.to(self.device)
        self.source = open_source(
            base, weights, library, encoder, cast(Predictor, self.model), device=self.device, dtype=self.dtype,
            resident_bytes=config.resident_gb * 1e9, across_sites=config.hypernet.across_sites,
            augment=config.augment, metric=config.metric,
        )  # fmt: skip
        # After the source, which fits the map of the text.
        self.average = copy.deepcopy(self.model).requires_grad_(False) if config.ema else None
        sizes = tuple(len(group.sites) for group in self.source.groups)
        self.sampler = Sampler(
            sizes=sizes, draws=share_sites(sizes, config.sites_per_step), effects=tuple(self.source.train),
            prompts=tuple(self.source.prompts[i] for i in self.source.train),
            effects_per_step=min(config.effects_per_step, len(self.source.train)), seed=config.seed,
            augment=config.augment.active,
        )  # fmt: skip
        self.optimizer = make_optimizer(self.model, config)
        self.hashes = {"base_hash": weights.hash, "library_hash": library.hash}
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
                pairs = sum(self.sampler.draws) * self.sampler.effects_per_step
                values["samples_per_second"] = count * pairs / max(time.perf_counter() - since, 1e-9)
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
        for start in range(self.step, stop, PLAN_STEPS):
            rows = self.sampler.plan(start, min(PLAN_STEPS, stop - start))
            rows = rows.to(self.device) if resident else rows
            batches = None if graphed else self.source.batches(rows, self.sampler.widths)
            for offset in range(len(rows)):
                step.set_step(start + offset)
                yield graphed(rows[offset]) if graphed else step(next(cast(Iterator, batches)))

    def evaluate(self) -> dict[str, float]:
        """Errors on every split of the library, of at most EVALUATED effects of each that have a prompt."""
        model = cast(Predictor, self.average or self.model)
        values: dict[str, float] = {}
        for split in sorted(set(self.source.splits)):
            effects = [i for i, name in enumerate(self.source.splits) if name == split and self.source.prompts[i][1]]
            if not effects:
                continue
            errors = evaluate(model, self.source, effects[:EVALUATED], dtype=self.dtype)
            values |= {f"{split}/{name}": value for name, value in errors.items()}
        return values

    def save(self) -> None:
        """Writes the state, then the checkpoint that it belongs to."""
        save_state(self.output / STATE, self.step, self.model, self.optimizer, self.average, self.config, self.hashes)
        save_checkpoint(
            self.output, self.average or self.model, base=self.base, config=self.config.hypernet,
            scales=self.source.scales, targets=self.library.targets, step=self.step,
            training=self.config.model_dump(mode="json"), dtype=DTYPES[self.config.checkpoint_precision], **self.hashes,
        )  # fmt: skip


def pick_device(name: str) -> torch.device:
    """ "auto" is a GPU where there is one.

    Raises:
        ConfigError: there is no such device.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ConfigError(f"device: {name} is not available here; use auto, cpu or cuda") from None
    return device
