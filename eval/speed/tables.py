"""From the lines of a measurement to the table of `eval/results/training.md`."""

from collections.abc import Sequence
from typing import Any

from eval.speed.plan import PAPER_SAMPLES, PAPER_STEPS

__all__ = ["efficiency", "gpu_hours", "memory_on", "sharing", "table"]

Line = dict[str, Any]
STATE_BYTES = 12  # a parameter: float32 master and AdamW's two moments, which ZeRO cuts up
COLUMNS = (
    "case", "Ray workers", "ZeRO", "samples a step", "samples/s/GPU", "TFLOP/s/GPU", "of matrix rate",
    "waiting for data", "memory, GB", "memory on 4, GB", "hours of the paper",
)  # fmt: skip


def gpu_hours(samples_per_second: float) -> float:
    """GPU hours of the paper's 4,000 epochs at so many samples a second on a GPU."""
    return PAPER_STEPS * PAPER_SAMPLES / samples_per_second / 3600


def memory_on(line: Line, workers: int) -> float:
    """Peak memory to expect on another number of workers, in 1e9 bytes: ZeRO cuts the state into more parts, all else
    stays. At stage 2 the accumulated float32 gradient is cut up as well."""
    each = STATE_BYTES + (4 if line["stage"] == 2 else 0)
    return line["memory_gb"] - line["parameters"] * each * (1 / line["workers"] - 1 / workers) / 1e9


def sharing(lines: Sequence[Line]) -> dict[str, float]:
    """Case -> how many times as many samples a second as the same step without shared weight tokens."""
    speed = {line["name"]: line["samples_per_second_per_worker"] for line in lines if line["kind"] == "single"}
    return {name: speed[name] / value for name in speed if (value := speed.get(f"{name} unshared")) is not None}


def efficiency(lines: Sequence[Line]) -> dict[tuple[str, int], float]:
    """(case, workers) -> samples a second a worker, over those of one worker."""
    runs = {(line["name"], line["workers"]): line for line in lines if line["kind"] == "cluster"}
    return {
        (name, workers): line["samples_per_second_per_worker"] / runs[name, 1]["samples_per_second_per_worker"]
        for (name, workers), line in runs.items()
        if workers > 1 and (name, 1) in runs
    }


def table(lines: Sequence[Line]) -> str:
    """Markdown."""
    out = []
    for line in lines:
        if line["kind"] == "rates":
            products = ", ".join(f"{p['m']} x {p['k']} x {p['n']}: {p['tflops']:.0f}" for p in line["products"])
            out.append(f"{line['device']}: matrix products, TFLOP/s: {products}; copy {line['copy_gb_s']:.0f} GB/s")
        if line["kind"] == "failure":
            out.append(f"failed: {line['error'][-300:]}")
    out += ["", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for line in lines:
        if line["kind"] not in ("single", "cluster"):
            continue
        cells = [
            line["name"], "none" if line["kind"] == "single" else str(line["workers"]), str(line["stage"]),
            str(line["samples_per_step"]), f"{line['samples_per_second_per_worker']:.1f}",
            f"{line['tflops_per_worker']:.0f}", f"{line['share_of_matrix_rate']:.1%}",
            f"{line['data_wait_share']:.1%}", f"{line['memory_gb']:.1f}", f"{memory_on(line, 4):.1f}",
            f"{gpu_hours(line['samples_per_second_per_worker']):.0f}",
        ]  # fmt: skip
        out.append(f"| {' | '.join(cells)} |")
    out.append("")
    out += [f"shared weight tokens, {name}: {value:.2f} times the samples/s" for name, value in sharing(lines).items()]
    out += [f"scaling, {name}: {value:.1%} on {count}" for (name, count), value in efficiency(lines).items()]
    return "\n".join(out)
