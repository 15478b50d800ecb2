"""Steps of the DeepSpeed engine that `ray_jobs.training` trains with, timed by its own meter."""

import contextlib
import dataclasses
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed
from torch import nn

from eval.speed.kernels import kernel_times
from eval.speed.plan import Case, Plan
from p2e.config import TrainConfig
from p2e.hypernet.variants import build_hypernet
from p2e.training import setup
from p2e.training.batches import Sampler
from p2e.training.data import open_source
from p2e.training.setup import Run, assemble
from ray_jobs.training.engine import Engine
from ray_jobs.training.inputs import Inputs
from ray_jobs.training.loop import TimedBatches
from ray_jobs.training.metrics import Meter
from ray_jobs.training.stream import Slots, resident_batches

__all__ = ["built_on", "measured", "profiled", "release", "single_run", "summary", "unshared"]


@contextlib.contextmanager
def built_on(device: torch.device) -> Iterator[None]:
    """Networks are built on the device, in a second: on the CPU, as training does it for the sake of the same values
    everywhere, the paper's size takes a quarter of a minute a case."""
    kept = setup.build_hypernet

    def build(*arguments: Any) -> nn.Module:
        with device:
            return kept(*arguments)

    setup.build_hypernet = build
    try:
        yield
    finally:
        setup.build_hypernet = kept


def release(device: torch.device) -> float:
    """Frees what earlier cases held -> what is still allocated on a GPU, in 1e9 bytes; the peak starts there."""
    torch._dynamo.reset()
    gc.collect()
    if device.type != "cuda":
        return 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device) / 1e9


def unshared(sampler: Sampler) -> Sampler:
    """As many samples with the same shapes, each of them a site of its own with its own weight tokens; what is left of
    the sharing is the text, which favours the step without."""
    draws = tuple(draw * sampler.effects_per_step for draw in sampler.draws)
    return dataclasses.replace(sampler, draws=draws, effects_per_step=1)


def single_run(plan: Plan, inputs: Callable[[Any], Inputs], library: str, device: torch.device) -> Run:
    """The run that all cases on one device share: its data is read once."""
    config = on(device, plan.job(plan.single[0], library, "/nowhere/speed", 1, gpus=False).train)
    opened = inputs(config)
    with built_on(device):
        run = assemble(config, opened.base, opened.weights, opened.library, opened.encoder(), opened=open_source)
    run.model.to("meta")  # every case has a network of its own
    return run


def on(device: torch.device, config: TrainConfig) -> TrainConfig:
    return config.model_copy(update={"device": str(device)})


def of_case(run: Run, plan: Plan, case: Case) -> Run:
    """A run with a fresh network and the batch shape of a case."""
    config = on(run.device, plan.job(case, run.config.library, run.config.output, 1, gpus=False).train)
    with run.device:
        model = build_hypernet(config.hypernet, run.base)
    sizes = run.sampler.sizes
    sampler = dataclasses.replace(
        run.sampler, draws=setup.share_sites(sizes, case.sites), effects_per_step=case.effects
    )
    return dataclasses.replace(run, config=config, model=model, sampler=sampler if case.shared else unshared(sampler))


@contextlib.contextmanager
def prepared(run: Run, plan: Plan, case: Case) -> Iterator[tuple[Engine, Slots]]:
    """The engine of a case, freed at the end: the next case has the device for itself."""
    slots = Slots(case.parts, 1)
    zero = plan.job(case, run.config.library, run.config.output, 1, gpus=False).zero
    engine = Engine(of_case(run, plan, case), zero, slots, 0)
    try:
        yield engine, slots
    finally:
        engine.close()


def measured(run: Run, plan: Plan, case: Case, peak: float) -> dict[str, Any]:
    """A case on one device -> its line.

    Args:
        peak: measured matrix rate of the device, FLOP/s.
    """
    before = release(run.device)
    start = time.perf_counter()
    with prepared(run, plan, case) as (engine, slots):
        meter = Meter(engine.run, slots, peak)
        reports = []
        for step in range(case.steps):
            batches = TimedBatches(resident_batches(engine.run, slots, 0, step))
            meter.add(engine.step(step, batches), batches.waited)
            if (step + 1) % case.every == 0:
                reports.append(meter.report())
        return {
            "kind": "single", "workers": 1, "memory_before_gb": before, **summary(case, reports, meter.flops, peak, 1),
            "parameters": sum(p.numel() for p in engine.parameters()), "seconds": time.perf_counter() - start,
        }  # fmt: skip


def summary(
    case: Case, reports: list[dict[str, float]], flops: int | None, peak: float, workers: int
) -> dict[str, Any]:
    """The line of a case, from its reports, the first of which is warm-up.

    Args:
        flops: of a step over all workers.
        peak: FLOP/s of a device.

    Raises:
        ValueError: there are fewer reports, or more.
    """
    if len(reports) != 1 + case.reports:
        raise ValueError(f"{case.name}: {len(reports)} reports of {1 + case.reports}")
    kept = reports[1:]
    samples = case.sites * case.effects * case.parts  # of a worker, a step
    # The reports cover the same number of steps: their times have equal weight.
    seconds = [samples / report["samples_per_second_per_worker"] for report in kept]
    mean = sum(seconds) / len(seconds)
    each = (flops or 0) / workers
    return {
        **dataclasses.asdict(case),
        "samples_per_step": samples * workers,
        "samples_per_second_per_worker": samples / mean,
        "step_seconds": mean,
        "step_seconds_least": min(seconds),
        "flops_per_step_per_worker": each,
        "tflops_per_worker": each / mean / 1e12,
        "share_of_matrix_rate": each / mean / peak,
        "data_wait_share": sum(r["data_wait_share"] * s for r, s in zip(kept, seconds, strict=True)) / sum(seconds),
        "memory_gb": max(report.get("memory_gb", 0.0) for report in reports),
        "loss": kept[-1]["loss"],
    }


def profiled(run: Run, plan: Plan, case: Case, rows: int = 40) -> dict[str, Any]:
    """Where the time of one step on a GPU goes: its longest kernels, by total time."""
    release(run.device)
    with prepared(run, plan, case) as (engine, slots):

        def step(index: int) -> None:
            engine.step(index, resident_batches(engine.run, slots, 0, index))

        for index in range(2):
            step(index)
        return {"kind": "profile", "name": case.name, **kernel_times(lambda: step(2), run.device, rows)}
