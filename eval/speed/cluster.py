"""The same cases through Ray Train, DeepSpeed and, where they stream, Ray Data: `ray_jobs.training` as it trains.

The workers are those of a real job but that they write no checkpoints; one worker group takes all cases in turn.
"""

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from eval.speed.inputs import SpeedInputs
from eval.speed.lines import add_line
from eval.speed.plan import PLANS, Case
from eval.speed.steps import built_on, release, summary
from ray_jobs.training.config import TrainJob
from ray_jobs.training.engine import Engine
from ray_jobs.training.loggers import Loggers
from ray_jobs.training.loop import Worker
from ray_jobs.training.metrics import step_flops

__all__ = ["run_cases", "start_ray"]


class Reports:
    """Takes what the loop logs, in the place of `ray_jobs.training.loggers.Loggers`."""

    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []

    def scalars(self, step: int, values: Mapping[str, float], last: bool = False) -> None:
        self.values.append(dict(values))


class SpeedWorker(Worker):
    """A worker that starts anew and writes no checkpoints."""

    def _restored(self) -> Engine:
        return Engine(self.run_, self.job.zero, self.slots, self.rank)

    def _save(self, values: dict[str, float], loggers: Loggers | None) -> None:
        pass

    def reports(self) -> list[dict[str, float]]:
        """Trains -> a report a step, on the first worker."""
        found: Any = Reports()
        self._train(found if self.rank == 0 else None, None)
        return found.values


def train_cases(settings: dict[str, Any]) -> None:
    """A training loop of Ray Train: measures several cases, one after the other, on the same workers; the first worker
    adds a line to the file "out" as soon as it has one."""
    import ray.train
    import ray.train.torch

    device = ray.train.torch.get_device()
    workers, rank = ray.train.get_context().get_world_size(), ray.train.get_context().get_world_rank()
    for values, case in zip(settings["jobs"], settings["cases"], strict=True):
        case = Case(**case)
        before = release(device)
        with built_on(device):
            worker = SpeedWorker(TrainJob.parse(values), settings["opened"])
        reports = worker.reports()
        if rank == 0:
            line = {
                "kind": "cluster", "workers": workers, "memory_before_gb": before,
                "parameters": sum(p.numel() for p in worker.engine.parameters()),
                **summary(case, reports, step_flops(worker.run_), settings["peak"], workers),
            }  # fmt: skip
            add_line(Path(settings["out"]), line)
        worker.engine.close()
        del worker
        torch.distributed.barrier()


def run_cases(
    plan_name: str, cases: list[Case], workers: int, inputs: SpeedInputs, out: Path, peak: float, *, gpus: bool
) -> None:
    """Measures cases on some workers; a failure of Ray ends it and is a line of its own.

    Args:
        out: file that lines are added to.
        peak: measured matrix rate of a device, FLOP/s.
    """
    import ray.train
    import ray.train.torch

    plan, out = PLANS[plan_name], out.absolute()
    with tempfile.TemporaryDirectory() as folder:
        jobs = [plan.job(case, inputs.library, f"{folder}/run", workers, gpus=gpus) for case in cases]
        resources = {"CPU": jobs[0].cpus, "GPU": 1} if gpus else {"CPU": 1}
        trainer = ray.train.torch.TorchTrainer(
            train_cases,
            train_loop_config={
                "jobs": [job.model_dump(mode="json") for job in jobs], "cases": [dataclasses.asdict(c) for c in cases],
                "opened": inputs, "out": str(out), "peak": peak,
            },
            scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=gpus, resources_per_worker=resources),
            torch_config=ray.train.torch.TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=300),
            run_config=ray.train.RunConfig(name="train", storage_path=folder),
        )  # fmt: skip
        try:
            trainer.fit()
        except Exception as error:  # what was measured before it counts
            add_line(out, {"kind": "failure", "name": f"{workers} workers", "error": repr(error)[-2000:]})


def start_ray(cpus: int | None, gpus: int, store_bytes: int) -> None:
    """A cluster on this machine alone.

    Args:
        store_bytes: of the object store; at most nine tenths of the shared memory there is.
    """
    import ray

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # said outright: the cluster listens on this machine alone
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # cases are over in seconds
    free = os.statvfs("/dev/shm")
    store = min(store_bytes, int(0.9 * free.f_bavail * free.f_frsize))
    ray.init(
        address="local", num_cpus=cpus, num_gpus=gpus, object_store_memory=store, include_dashboard=False,
        log_to_driver=True,
    )  # fmt: skip
