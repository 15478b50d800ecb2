"""Where the first worker sends metrics: TensorBoard always, MLflow or Weights & Biases where they are configured."""

import importlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from p2e.errors import ConfigError
from p2e.training.report import Reporter
from ray_jobs.training.config import TrainJob

__all__ = ["Loggers", "SampleLog", "check_loggers"]


def module(name: str, setting: str) -> Any:
    """An optional library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"{setting}: {name} is not installed; `pip install {name}`, or leave the setting out"
        ) from None


def check_loggers(job: TrainJob) -> None:
    """Imports what the configuration asks for, so that a run fails before it starts."""
    for name, value in (("mlflow", job.log.mlflow), ("wandb", job.log.wandb)):
        if value is not None:
            module(name, f"log.{name}")


class Loggers:
    """All of a run's logs.

    Args:
        job: the job.
        done: steps already taken.
    """

    def __init__(self, job: TrainJob, done: int) -> None:
        folder, name = f"{job.train.output.rstrip('/')}/tensorboard", job.location[1]
        self._reporter = Reporter(job.train.steps, done, True, folder)
        self._mlflow = self._wandb = None
        if job.log.mlflow is not None:
            self._mlflow = module("mlflow", "log.mlflow")
            self._mlflow.set_tracking_uri(job.log.mlflow)
            self._mlflow.set_experiment("p2e")
            known = self._mlflow.search_runs(filter_string=f"attributes.run_name = '{name}'", output_format="list")
            self._mlflow.start_run(run_id=known[0].info.run_id if known else None, run_name=name)
        if job.log.wandb is not None:
            settings = job.model_dump(mode="json")
            self._wandb = module("wandb", "log.wandb").init(
                project=job.log.wandb, name=name, id=name, resume="allow", config=settings
            )

    def scalars(self, step: int, values: Mapping[str, float], *, last: bool = False) -> None:
        self._reporter.scalars(step, values, last)
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        if self._mlflow is not None:
            self._mlflow.log_metrics(finite, step=step)
        if self._wandb is not None:
            self._wandb.log(finite, step=step)

    def close(self) -> None:
        self._reporter.close()
        if self._mlflow is not None:
            self._mlflow.end_run()
        if self._wandb is not None:
            self._wandb.finish()


class SampleLog:
    """A JSON line a micro-batch: step, its place in the step, and the sampler's row that was trained on.

    A file an attempt and worker, so that a killed attempt leaves at most one broken line; `attempt`, the same for all
    its workers, orders them.
    """

    def __init__(self, folder: str, rank: int, start: int, attempt: float) -> None:
        path = Path(folder) / f"{attempt:.3f}-{start:09d}-{rank}-{os.getpid()}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")

    def write(self, step: int, part: int, row: list[int]) -> None:
        self._file.write(json.dumps({"step": step, "part": part, "row": row}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
