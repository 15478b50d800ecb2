"""The lines of a measurement: JSON, one a case, in a file as soon as it is there, with where it was made."""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from eval.speed.rates import synchronise

__all__ = ["add_line", "emit", "lines", "options", "peak_gb", "rate_line", "reset_peak", "timed"]


def add_line(out: Path, line: dict[str, Any]) -> None:
    """Appends a line at once: whatever ends the process, it stays."""
    with out.open("a") as file:
        file.write(json.dumps(line) + "\n")


def emit(out: Path, line: dict[str, Any]) -> None:
    """Prints a line and adds it to the file."""
    print(json.dumps(line), flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    add_line(out, line)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def hardware(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def commit() -> str:
    """P2E_COMMIT, for copies without a history of their own; else of this checkout."""
    if given := os.environ.get("P2E_COMMIT"):
        return given
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def rate_line(device: torch.device, **rates: Any) -> dict[str, Any]:
    """The first line: what the device is and can do, and of which commit the rest is."""
    return {"kind": "rates", "device": hardware(device), "torch": torch.__version__, "commit": commit(), **rates}


def options(module: str, text: str | None, plans: Iterable[str]) -> argparse.ArgumentParser:
    """What all measurements of one device are asked for."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=text)
    parser.add_argument("--plan", choices=sorted(plans), default="paper")
    name = Path(f"{module.rsplit('.', 1)[-1]}.jsonl")
    parser.add_argument("--out", type=Path, default=name, help="file that lines are added to")
    parser.add_argument("--device", default="auto")
    return parser


def reset_peak(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float | None:
    """Most memory that was allocated on the device since `reset_peak`, in 1e9 bytes."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def timed(function: Callable[[int], object], device: torch.device, repeats: int) -> dict[str, Any]:
    """Calls a function with 0, 1, ... -> median and spread in seconds, the first call apart, and peak memory in 1e9
    bytes."""
    reset_peak(device)
    seconds = []
    for index in range(1 + repeats):
        synchronise(device)
        start = time.perf_counter()
        kept = function(index)
        synchronise(device)
        seconds.append(time.perf_counter() - start)
        del kept
    warm = sorted(seconds[1:])
    return {
        "seconds": statistics.median(warm), "least": warm[0], "most": warm[-1], "first": seconds[0],
        "memory_gb": peak_gb(device),
    }  # fmt: skip
