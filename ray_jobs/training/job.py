"""A training job from the driver's side: cluster, workers, storage, and the checkpoint that comes out."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import ray
import ray.train
import ray.train.torch

from p2e.config import TrainConfig
from p2e.errors import InputError, P2EError
from ray_jobs.training.config import TrainJob
from ray_jobs.training.inputs import Inputs, open_inputs
from ray_jobs.training.loggers import check_loggers
from ray_jobs.training.loop import train_worker

__all__ = ["connect", "train"]

FILES = ("config.json", "sites.json", "model.safetensors")  # the weights last: they name the others


def connect() -> None:
    """Joins the cluster of RAY_ADDRESS (a submitted job has it), or starts one on this machine for this process."""
    if ray.is_initialized():
        return
    if "RAY_ADDRESS" in os.environ:
        ray.init()
        return
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(address="local", include_dashboard=False)


def train(job: TrainJob, *, opened: Callable[[TrainConfig], Inputs] = open_inputs, **run_options: Any) -> str:
    """Trains a hypernetwork on a cluster, or goes on with the run that `job.train.output` holds.

    Args:
        opened: opens base and library, on the driver and on every worker.
        run_options: further fields of Ray's `RunConfig`, such as a `storage_filesystem`.

    Returns:
        The run's folder, which is a checkpoint that inference reads.

    Raises:
        InputError: base, library and configuration do not fit together, or cannot be read.
        ray.train.v2.api.exceptions.TrainingFailedError: workers failed more often than `job.max_failures`.
    """
    check_loggers(job)
    inputs = opened(job.train)
    if inputs.library.base_name != inputs.base.name:
        raise InputError(f"the library was prepared for {inputs.library.base_name}, not {inputs.base.name}")
    connect()
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "900")  # nodes may have to start first
    gpus = "GPU" in ray.cluster_resources() if job.gpus == "auto" else job.gpus
    resources = {"CPU": job.cpus, "GPU": 1} if gpus else {"CPU": job.cpus}
    path, name = job.location
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
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
    result = trainer.fit()
    if result.checkpoint is None:
        raise InputError(f"{job.train.output}: the run left no checkpoint; give another output")
    with result.checkpoint.as_directory() as folder:
        publish(Path(folder), job.train.output)
    return job.train.output


def publish(folder: Path, output: str) -> None:
    """Copies the files that inference reads to the run's folder, wherever that is."""
    file_system, inner = fsspec.core.url_to_fs(output)
    for name in FILES:
        file_system.put_file(str(folder / name), f"{inner}/.{name}")
        file_system.mv(f"{inner}/.{name}", f"{inner}/{name}")


def cause(error: BaseException) -> P2EError | None:
    """The user's mistake behind a failure of workers, if one is."""
    failures = getattr(error, "worker_failures", {})
    for inner in [*failures.values(), error.__cause__]:
        while inner is not None:
            if isinstance(inner, P2EError):
                return inner
            inner = getattr(inner, "cause", None) or getattr(inner, "_base_exc", None) or inner.__cause__
    return None
