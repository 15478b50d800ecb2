"""A training job from the driver's side: cluster, workers, storage, and the checkpoint that comes out."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import ray
import ray.train
import ray.train.torch
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from p2e.config import TrainConfig
from p2e.errors import ConfigError, InputError, P2EError
from ray_jobs.prepare import prepare
from ray_jobs.prepare_passes import PrepareJob
from ray_jobs.session import check_resources, connect
from ray_jobs.training.config import TrainJob
from ray_jobs.training.inputs import Inputs, open_inputs
from ray_jobs.training.loggers import check_loggers
from ray_jobs.training.loop import train_worker
from ray_jobs.training.storage import mend

__all__ = ["train"]

FILES = ("config.json", "sites.json", "model.safetensors")  # the weights last: they name the others


def train(job: TrainJob, *, opened: Callable[[TrainConfig], Inputs] = open_inputs, **run_options: Any) -> str:
    """Trains a hypernetwork on a cluster, or goes on with the run that `job.train.output` holds.

    Args:
        opened: opens base and library, on the driver and on every worker.
        run_options: further fields of Ray's `RunConfig`, such as a `storage_filesystem`.

    Returns:
        The run's folder, which is a checkpoint that inference reads.

    Raises:
        P2EError: base, library and configuration do not fit together, or cannot be read, or the machines cannot hold
            the workers.
        TrainingFailedError: workers failed more often than `job.max_failures`.
    """
    check_loggers(job)
    if job.manifest is not None:
        connect(worker_logs=True)
        prepare(PrepareJob(manifest=job.manifest, output=job.train.library, rank=job.train.hypernet.rank))
    inputs = opened(job.train)
    if inputs.library.base_name != inputs.base.name:
        raise InputError(f"the library was prepared for {inputs.library.base_name}, not {inputs.base.name}")
    connect(worker_logs=True)
    gpus = "GPU" in ray.cluster_resources() if job.gpus == "auto" else job.gpus
    check_resources(job.cpus, float(gpus), job.least_workers)
    resources = {"CPU": job.cpus, "GPU": 1} if gpus else {"CPU": job.cpus}
    path, name = job.location
    trainer = functools.partial(
        ray.train.torch.TorchTrainer, train_worker,
        train_loop_config={"job": job.model_dump(mode="json"), "inputs": opened},
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.workers, use_gpu=gpus, resources_per_worker=resources
        ),
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=job.timeout_seconds),
        run_config=ray.train.RunConfig(
            name=name, storage_path=path,
            failure_config=ray.train.FailureConfig(max_failures=job.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=job.keep),
            **run_options,
        ),
    )  # fmt: skip
    try:
        result = fit(trainer, job)
    except TrainingFailedError as error:
        if mistake := cause(error):
            raise mistake from error
        raise
    if result.return_value is not None:
        raise ConfigError(result.return_value)
    if result.checkpoint is None:
        raise InputError(f"{job.train.output}: the run left no checkpoint; give another output")
    with result.checkpoint.as_directory() as folder:
        publish(Path(folder), job.train.output)
    return job.train.output


def fit(trainer: Callable[[], ray.train.torch.TorchTrainer], job: TrainJob) -> ray.train.Result:
    """Trains to the end. Ray starts lost workers again, but not its own controller: where that could not write its list
    of checkpoints, as on a full disk, the run is taken up once more from what is there."""
    failures = 0
    while True:
        mend(job.train.output.rstrip("/"))
        try:
            return trainer().fit()
        except ControllerError as error:
            if not isinstance(error.controller_failure, OSError) or failures == job.max_failures:
                raise
            failures += 1


def publish(folder: Path, output: str) -> None:
    """Copies the files that inference reads to the run's folder, wherever that is."""
    file_system, inner = fsspec.core.url_to_fs(output)
    for name in FILES:
        file_system.put_file(str(folder / name), f"{inner}/.{name}")
        file_system.mv(f"{inner}/.{name}", f"{inner}/{name}")


def cause(error: TrainingFailedError) -> P2EError | None:
    """The user's mistake behind a failure of workers, if one is; Ray puts a worker's error into one of its own."""
    for inner in getattr(error, "worker_failures", {}).values():
        found = getattr(inner, "_base_exc", inner)
        if isinstance(found, P2EError):
            return found
    return None
