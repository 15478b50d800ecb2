"""What every worker of a training job runs: the loop of `p2e.training.loop`, on a share of each step's micro-batches.

`p2e.training.loop` is the same for one process, without Ray and DeepSpeed, and shorter: read that first.
"""

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import ray.train.collective
import ray.train.torch
import torch
import torch.distributed

from p2e.config import TrainConfig
from p2e.errors import ConfigError
from p2e.training.data import Batch, ResidentSource, Source, open_source
from p2e.training.setup import assemble
from ray_jobs.training import checkpoints
from ray_jobs.training.config import TrainJob
from ray_jobs.training.engine import Engine
from ray_jobs.training.inputs import Inputs, SharedEncoder
from ray_jobs.training.loggers import Loggers, SampleLog
from ray_jobs.training.metrics import Meter, peak_flops
from ray_jobs.training.stream import Slots, StreamedBatches, resident_batches

__all__ = ["train_worker"]


def train_worker(settings: dict[str, Any]) -> str | None:
    """Trains to the end, or goes on from the newest whole checkpoint of the run.

    Args:
        settings: "job", a resolved `TrainJob`; "inputs", what opens base and library on this worker.

    Returns:
        None, or what is wrong with the configuration. All workers find that alike, and Ray Train would try again what
        they raise.
    """
    job: TrainJob = TrainJob.parse(settings["job"])
    opened: Callable[[TrainConfig], Inputs] = settings["inputs"]
    try:
        Worker(job, opened).run()
    except ConfigError as error:
        return str(error)
    return None


class Worker:
    """One worker of a run.

    Args:
        job: the job.
        opened: opens base and library.
    """

    def __init__(self, job: TrainJob, opened: Callable[[TrainConfig], Inputs]) -> None:
        context = ray.train.get_context()
        self.job, self.rank = job, context.get_world_rank()
        self.attempt: float = ray.train.collective.broadcast_from_rank_zero(time.time())
        self.first_on_node = context.get_local_rank() == 0
        self.slots = Slots(job.train.micro_batches, context.get_world_size())
        config = job.train.model_copy(update={"device": str(ray.train.torch.get_device())})
        inputs = opened(config)
        self.run_ = assemble(
            config, inputs.base, inputs.weights, inputs.library,
            SharedEncoder(inputs.encoder, inputs.base.text_dim, self.rank), opened=open_streamed_source,
        )  # fmt: skip
        self.step = 0
        self.engine = self._restored()

    def _restored(self) -> Engine:
        """The engine, as the newest whole checkpoint has it."""
        found = checkpoints.find(ray.train.get_all_reported_checkpoints(), self.rank)
        build = partial(Engine, self.run_, self.job.zero, self.slots, self.rank)
        if found is None:
            return build()
        with found.as_directory() as folder:
            saved = checkpoints.Saved(Path(folder))
            saved.check(self.run_, self.job.zero)
            self.step = saved.step
            if saved.world == self.slots.world:
                engine = build()
                checkpoints.load(engine, saved, None)
                return engine
            universal = Path(self.job.scratch or tempfile.gettempdir()) / f"p2e-universal-{saved.stamp()}-{saved.step}"
            if self.first_on_node:
                shutil.rmtree(universal, ignore_errors=True)
                checkpoints.to_universal(saved, universal)
            torch.distributed.barrier()
            engine = build(universal=True)
            checkpoints.load(engine, saved, universal)
            torch.distributed.barrier()
            if self.first_on_node:
                shutil.rmtree(universal, ignore_errors=True)
            return engine

    def run(self) -> None:
        loggers = Loggers(self.job, self.step) if self.rank == 0 else None
        folder = self.job.log.samples
        samples = SampleLog(folder, self.rank, self.step, self.attempt) if folder else None
        try:
            self._train(loggers, samples)
        finally:
            if loggers is not None:
                loggers.close()
            if samples is not None:
                samples.close()

    def _train(self, loggers: Loggers | None, samples: SampleLog | None) -> None:
        config, run = self.job.train, self.run_
        peak = self.job.log.peak_tflops
        meter = Meter(run, self.slots, peak * 1e12 if peak else peak_flops(run.device))
        stream = None
        if not isinstance(run.source, ResidentSource) and self.step < config.steps:
            stream = StreamedBatches(run, self.job.stream, self.slots, self.rank, (self.step, config.steps))
        while self.step < config.steps:
            batches = TimedBatches(self._batches(stream, samples))
            losses = self.engine.step(self.step, batches)
            self.step += 1
            meter.add(losses, batches.waited)
            last = self.step == config.steps
            logs, saves = last or self.step % config.log_every == 0, last or self._due(config.checkpoint_every)
            values: dict[str, float] = {}
            if logs:
                values = meter.report()
                if not math.isfinite(values["loss"]):
                    raise ConfigError(f"training diverged before step {self.step}; lower learning_rate, start anew")
                saves = saves or ray.train.get_preemption_info() is not None
                if loggers is not None:
                    loggers.scalars(self.step, values, last=last)
            if saves:
                self._save(values, loggers)
                meter.restart()
            elif logs:
                ray.train.report({"step": self.step, **values})
        if meter.steps == 0 and self.step >= config.steps:
            torch.distributed.barrier()

    def _due(self, every: int) -> bool:
        return bool(every) and self.step % every == 0

    def _batches(self, stream: StreamedBatches | None, samples: SampleLog | None) -> Iterator[Batch]:
        """This worker's micro-batches of the step, each noted when it is handed out."""
        if stream is not None:
            batches = stream.step(self.step)
        else:
            batches = resident_batches(self.run_, self.slots, self.rank, self.step)
        for slot, batch in enumerate(batches):
            if samples is not None and self.slots.counts(slot, self.rank):
                row = self.run_.sampler.row(self.slots.index(self.step, slot, self.rank))
                samples.write(self.step, slot * self.slots.world + self.rank, row)
            yield batch

    def _save(self, values: dict[str, float], loggers: Loggers | None) -> None:
        """Writes a checkpoint and hands it to Ray Train, which uploads it while training goes on."""
        folder, model = checkpoints.save(self.engine, self.step, self.job.scratch)
        config = self.job.train
        if (
            model is not None
            and loggers is not None
            and (self._due(config.evaluate_every) or self.step == config.steps)
        ):
            loggers.scalars(self.step, self.run_.evaluate(model.to(self.run_.device)))
        ray.train.report(
            {"step": self.step, **values}, checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        )  # fmt: skip


class TimedBatches:
    """An iterator that counts the seconds its consumer waits."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches, self.waited = batches, 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.waited += time.perf_counter() - start


def open_streamed_source(*args: Any, resident_bytes: float, **options: Any) -> Source:
    """`open_source`, but what does not fit the device comes through Ray Data: the source itself reads nothing ahead."""
    source = open_source(*args, resident_bytes=resident_bytes, **options) if resident_bytes else None
    return source if isinstance(source, ResidentSource) else Source(*args, **options)
