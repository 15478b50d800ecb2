"""Where the time of something on a GPU goes: its kernels, by total time."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["kernel_rows", "kernel_times"]

NAME = 120  # characters of a kernel's name


def kernel_times(function: Callable[[], object], device: torch.device, rows: int = 40) -> dict[str, Any]:
    """Runs a function under PyTorch's profiler.

    Args:
        rows: how many kernels are named, the longest first.

    Returns:
        `kernel_seconds` of all kernels together, and of each of `kernels` its name, calls and seconds.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        kept = function()
        torch.cuda.synchronize(device)
    del kept
    kernels = [e for e in trace.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    return {
        "kernel_seconds": sum(event.self_device_time_total for event in kernels) / 1e6,
        "kernels": [
            {"name": event.key[:NAME], "calls": event.count, "seconds": event.self_device_time_total / 1e6}
            for event in kernels[:rows]
        ],
    }  # fmt: skip


def kernel_rows(lines: Sequence[dict[str, Any]], most: int = 16) -> list[str]:
    """Markdown: a table for each line of a measurement that has `kernel_times` in it."""
    rows = []
    for line in lines:
        if "kernels" not in line:
            continue
        rows += [f"\n{line['name']}: {line['kernel_seconds']:.4f} s of kernels", "",
                 "| seconds | share | calls | kernel |", "|---|---|---|---|"]  # fmt: skip
        rows += [
            f"| {k['seconds']:.4f} | {k['seconds'] / line['kernel_seconds']:.1%} | {k['calls']} | `{k['name']}` |"
            for k in line["kernels"][:most]
        ]
    return rows
