"""Measures training of the hypernetwork at the paper's size: one JSON line a measurement, then a table.

    python -m eval.speed.train --inputs /data/speed --out speed.jsonl single      # one GPU, without Ray
    python -m eval.speed.train --inputs /data/speed --out speed.jsonl cluster --workers 1 2
    python -m eval.speed.train --out speed.jsonl table

`--inputs` is filled with random weights and targets on first use (7 GB); `--plan tiny` is the same in small.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from eval.speed.cluster import run_cases, start_ray
from eval.speed.inputs import make_inputs
from eval.speed.lines import emit, lines, rate_line
from eval.speed.plan import PLANS, Plan
from eval.speed.rates import copy_bandwidth, matrix_rate
from eval.speed.tables import table
from p2e.training.setup import pick_device

__all__ = ["main"]


def rates(plan: Plan, device: torch.device, seconds: float) -> dict[str, Any]:
    """What the device can do, in the run that it is compared with."""
    dtype = torch.bfloat16 if plan.precision == "bfloat16" else torch.float32
    products = [
        {"m": m, "k": k, "n": n, "tflops": matrix_rate(device, m, k, n, dtype, seconds) / 1e12}
        for m, k, n in plan.products
    ]
    return rate_line(device, products=products, copy_gb_s=copy_bandwidth(device, plan.copy_bytes, seconds) / 1e9)


def single(arguments: argparse.Namespace, plan: Plan, device: torch.device, peak: float) -> None:
    from eval.speed.steps import measured, profiled, single_run

    inputs = make_inputs(arguments.inputs, plan.size, device)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}  # as a launcher sets them for DeepSpeed
    with tempfile.TemporaryDirectory() as folder:
        if device.type == "cuda":
            torch.cuda.set_device(0)
        torch.distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1
        )
        try:
            run = single_run(plan, inputs, inputs.library, device)
            for case in plan.single:
                if arguments.cases and case.name not in arguments.cases:
                    continue
                try:
                    emit(arguments.out, measured(run, plan, case, peak))
                except RuntimeError as error:  # out of memory, or a compiler's: the others still count
                    emit(arguments.out, {"kind": "failure", "name": case.name, "error": str(error)[:300]})
                    if device.type != "cuda":
                        raise
            if arguments.profile:
                chosen = [case for case in plan.single if case.name in arguments.profile]
                for case in chosen:
                    emit(arguments.out, profiled(run, plan, case))
        finally:
            torch.distributed.destroy_process_group()


def cluster(arguments: argparse.Namespace, plan: Plan, device: torch.device, peak: float) -> None:
    import ray

    inputs = make_inputs(arguments.inputs, plan.size, device)
    gpus = device.type == "cuda"
    cases = [case for case in plan.cluster if not arguments.cases or case.name in arguments.cases]
    if not ray.is_initialized():
        start_ray(arguments.cpus, torch.cuda.device_count() if gpus else 0, int(arguments.store_gb * 1e9))
    for workers in arguments.workers:
        known = len(lines(arguments.out))
        run_cases(arguments.plan, cases, workers, inputs, arguments.out, peak, gpus=gpus)
        for line in lines(arguments.out)[known:]:
            print(json.dumps(line), flush=True)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval.speed.train", description=__doc__)
    parser.add_argument("what", choices=["inputs", "single", "cluster", "table"])
    parser.add_argument("--plan", choices=sorted(PLANS), default="paper")
    parser.add_argument("--inputs", type=Path, default=Path("speed-inputs"), help="folder of the random inputs")
    parser.add_argument("--out", type=Path, default=Path("speed.jsonl"), help="file that lines are added to")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cases", nargs="*", default=[], help="names of the cases; all where none is given")
    parser.add_argument("--profile", nargs="*", default=[], help="cases whose kernels are listed")
    parser.add_argument("--workers", nargs="*", type=int, default=[1], help="numbers of workers, one after the other")
    parser.add_argument("--cpus", type=int, default=None, help="of the Ray cluster")
    parser.add_argument("--store-gb", type=float, default=24.0, help="of Ray's object store")
    parser.add_argument("--rate-seconds", type=float, default=0.3, help="of each rate's measurement")
    arguments = parser.parse_args(given)
    plan = PLANS[arguments.plan]
    if arguments.what == "table":
        print(table(lines(arguments.out)))
        return 0
    device = pick_device(arguments.device)
    if arguments.what == "inputs":
        make_inputs(arguments.inputs, plan.size, device)
        return 0
    found = rates(plan, device, arguments.rate_seconds)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    emit(arguments.out, found)
    peak = found["products"][0]["tflops"] * 1e12
    (single if arguments.what == "single" else cluster)(arguments, plan, device, peak)
    print(table(lines(arguments.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
