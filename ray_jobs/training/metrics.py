"""What a run measures about itself: losses, speed, utilisation, time spent waiting for data, memory."""

import time

import torch
import torch.distributed
from torch import Tensor

from p2e.hypernet.flops import training_flops
from p2e.hypernet.losses import Losses
from p2e.training.setup import Run
from ray_jobs.training.stream import Slots

__all__ = ["Meter", "peak_flops", "step_flops"]

# Dense bfloat16 matrix rate by the maker's data sheets, FLOP/s.
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "L40S": 362e12, "A10G": 70e12}


def peak_flops(device: torch.device) -> float | None:
    """Matrix rate of a GPU that the table knows."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAKS.items() if key in name), None)


def step_flops(run: Run) -> int | None:
    """Floating-point operations of an optimizer step over all micro-batches, or None for a network without a count."""
    groups = zip(run.sampler.draws, run.source.groups, strict=True)
    shapes = [(draw, group.d_out, group.d_in) for draw, group in groups]
    _, tokens, width = run.source.text.shape
    try:
        one = training_flops(run.config.hypernet, shapes, run.sampler.effects_per_step, tokens, width)
    except ValueError:
        return None
    return one * run.config.micro_batches


class Meter:
    """Sums between two reports.

    Args:
        peak: FLOP/s of one device, or None where utilisation is unknown.
    """

    def __init__(self, run: Run, slots: Slots, peak: float | None) -> None:
        self.run, self.slots, self.peak, self.flops = run, slots, peak, step_flops(run)
        self.losses = torch.zeros(len(Losses._fields), device=run.device)
        self.restart()

    def restart(self) -> None:
        self.losses.zero_()
        self.steps, self.waited, self.since = 0, 0.0, time.perf_counter()

    def add(self, losses: Tensor, waited: float) -> None:
        """A step: this worker's share of the scalars, and the seconds in which it had no data to work on."""
        self.losses += losses
        self.steps += 1
        self.waited += waited

    def report(self) -> dict[str, float]:
        """Means since the last report, over all workers, which must all call it."""
        totals = self.losses.clone()
        torch.distributed.all_reduce(totals)
        if self.run.device.type == "cuda":
            torch.cuda.synchronize(self.run.device)
        seconds = max(time.perf_counter() - self.since, 1e-9)
        worst = torch.tensor([self.waited / seconds, self._memory()], device=self.run.device)
        torch.distributed.all_reduce(worst, torch.distributed.ReduceOp.MAX)
        values = dict(zip(Losses._fields, (totals / self.steps).tolist(), strict=True))
        speed = self.steps / seconds / self.slots.world
        values["samples_per_second_per_worker"] = speed * self.run.pairs
        if self.flops is not None:
            values["tflops_per_worker"] = speed * self.flops / 1e12
            if self.peak is not None:
                values["model_flop_utilisation"] = speed * self.flops / self.peak
        waiting, memory = worst.tolist()
        values["data_wait_share"] = waiting
        if self.run.device.type == "cuda":
            values["memory_gb"] = memory
        self.restart()
        return values

    def _memory(self) -> float:
        """Peak of what PyTorch has allocated on the GPU, in 1e9 bytes."""
        return torch.cuda.max_memory_allocated(self.run.device) / 1e9 if self.run.device.type == "cuda" else 0.0
