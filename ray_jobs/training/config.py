"""Settings of a training job on a Ray cluster; no import of torch or Ray."""

from pathlib import PurePosixPath
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from p2e.config import Settings, TrainConfig
from p2e.errors import ConfigError

__all__ = ["LogConfig", "StreamConfig", "TrainJob", "ZeroConfig", "with_changes"]


class ZeroConfig(Settings):
    """How DeepSpeed spreads the optimizer's work over the workers.

    Attributes:
        stage: 0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters.
        parameters: type in which a worker holds the network. "bfloat16" keeps float32 masters in the optimizer, so it
            needs stage 1 or more; "float32" is what `p2e train` does.
        bucket: elements of gradient that are reduced together.
    """

    stage: Literal[0, 1, 2, 3] = 1
    parameters: Literal["float32", "bfloat16"] = "float32"
    bucket: int = Field(default=100_000_000, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.parameters == "bfloat16" and self.stage == 0:
            raise ValueError("bfloat16 parameters need float32 masters, which stage 0 has not; set stage: 1 or more")
        return self


class StreamConfig(Settings):
    """How Ray Data brings sites to the workers, where they do not fit `train.resident_gb`.

    Attributes:
        window: steps whose micro-batches one streaming execution reads; the next one is ready when it ends.
        prefetch: micro-batches that wait on a worker's device.
        cpus: of each reading task.
    """

    window: int = Field(default=256, ge=1)
    prefetch: int = Field(default=2, ge=1)
    cpus: float = Field(default=1.0, gt=0)


class LogConfig(Settings):
    """Where metrics go, beside TensorBoard files in the run's folder.

    Attributes:
        mlflow: tracking URI, or None for no MLflow.
        wandb: project, or None for no Weights & Biases; the key is read from the environment.
        samples: a folder that every worker can write, for a JSON line a micro-batch with what was trained on.
        peak_tflops: matrix rate of one device, for model FLOP utilisation; None is that of the table in
            `ray_jobs.training.metrics`, where it knows the device.
    """

    mlflow: str | None = None
    wandb: str | None = None
    samples: str | None = None
    peak_tflops: float | None = Field(default=None, gt=0)


class TrainJob(Settings):
    """A training run on a Ray cluster.

    Attributes:
        train: the run itself; its `output` is a folder or fsspec URL that all nodes reach, with `resident_gb: 0` sites
            always come through Ray Data.
        manifest: of LoRAs (a file, an fsspec URL, or "world"), from which `train.library` is prepared first at the
            network's rank, where that is not done yet; None takes the library as it is.
        workers: their number, or the least and the most of an elastic run. A step's micro-batches are shared out over
            them, so that the number changes nothing but speed; numbers that divide `train.micro_batches` waste nothing.
        gpus: one GPU a worker; "auto" is yes where the cluster has any now, so a cluster that starts its GPU nodes on
            demand needs `true`.
        cpus: CPUs a worker reserves.
        zero, stream, log: see there.
        keep: checkpoints that stay in the run's folder.
        max_failures: restarts after lost workers and other errors before the run is given up; -1 is no limit.
        scratch: folder for what waits to be uploaded, on every node; None is the system's.
        timeout_seconds: of collective operations.
    """

    train: TrainConfig
    manifest: str | None = None
    workers: int | tuple[int, int] = 1
    gpus: bool | Literal["auto"] = "auto"
    cpus: float = Field(default=1.0, ge=0)
    zero: ZeroConfig = ZeroConfig()
    stream: StreamConfig = StreamConfig()
    log: LogConfig = LogConfig()
    keep: int = Field(default=3, ge=2)
    max_failures: int = Field(default=8, ge=-1)
    scratch: str | None = None
    timeout_seconds: int = Field(default=1800, ge=1)

    @property
    def least_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def location(self) -> tuple[str, str]:
        """Storage path and name of the run, as Ray Train takes them."""
        output = self.train.output.rstrip("/")
        parent, _, name = output.rpartition("/")
        return parent, name

    @model_validator(mode="after")
    def _check(self) -> Self:
        least, most = self.least_workers, self.most_workers
        if not 1 <= least <= most:
            raise ValueError(f"workers {self.workers}: give a number from 1, or [least, most]")
        if most > self.train.micro_batches:
            raise ValueError(
                f"{most} workers share {self.train.micro_batches} micro-batches a step; set train.micro_batches: {most}"
                " or more (and fewer sites or effects in each, to keep the batch), or fewer workers"
            )
        if self.train.cuda_graph:
            raise ValueError("a CUDA graph cannot hold DeepSpeed's step; set train.cuda_graph: false")
        if self.train.compile and self.zero.stage == 3:
            raise ValueError(
                "torch.compile does not see the parameters that stage 3 gathers; set zero.stage: 2 or less"
            )
        if "://" not in self.train.output and not PurePosixPath(self.train.output).is_absolute():
            raise ValueError(f"train.output {self.train.output}: give an absolute path, or a URL, that all nodes reach")
        return self


def with_changes(values: Any, changes: list[str]) -> Any:
    """Settings with `a.b=value` changes, values in YAML.

    Raises:
        ConfigError: a change has no `=`, or goes into something that is no mapping.
    """
    import yaml

    for change in changes:
        place, equals, text = change.partition("=")
        *parents, last = place.split(".")
        target = values
        for key in parents if equals else ():
            target = target.setdefault(key, {}) if isinstance(target, dict) else None
        if not equals or not isinstance(target, dict):
            raise ConfigError(f"{change}: not a change of a setting; write such as train.steps=100")
        target[last] = yaml.safe_load(text)
    return values
