"""The measurement of training speed, whole and tiny: real Ray, real DeepSpeed, on CPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.speed.inputs import SpeedInputs, make_inputs, speed_base
from eval.speed.plan import PAPER, PAPER_SAMPLES, TINY
from eval.speed.rates import copy_bandwidth, matrix_rate
from eval.speed.steps import summary, unshared
from eval.speed.tables import efficiency, gpu_hours, memory_on, sharing, table
from p2e.bases import get_base
from p2e.config import HypernetConfig
from p2e.hypernet.flops import training_flops
from p2e.lora.prepared import PreparedLibrary
from p2e.training.batches import Sampler, share_sites

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> SpeedInputs:
    return make_inputs(tmp_path_factory.mktemp("speed"), TINY.size, CPU)


def measure(inputs: SpeedInputs, out: Path, *arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "eval.speed.train", *arguments, "--plan", "tiny", "--device", "cpu", "--cpus", "4"]
    command += ["--inputs", str(inputs.folder), "--out", str(out), "--rate-seconds", "0.2", "--store-gb", "0.1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled",
                   "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}  # fmt: skip
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")] == lines
    assert done.stdout.rstrip().endswith(table(lines))
    return lines


def counted(sites: tuple[int, ...], effects: int, parts: int) -> int:
    """FLOPs of a tiny step from the equations, for so many sites of each shape."""
    shapes = [(n, *shape) for n, shape in zip(sites, speed_base(TINY.size).shapes, strict=True)]
    config = HypernetConfig(**TINY.hypernet)
    return parts * training_flops(config, shapes, effects, TINY.size.tokens, TINY.size.text_width)


def check(line: dict[str, Any], peak: float, workers: int) -> None:
    speed, seconds = line["samples_per_second_per_worker"], line["step_seconds"]
    assert speed * seconds * workers == pytest.approx(line["samples_per_step"])
    assert line["tflops_per_worker"] * seconds * 1e12 == pytest.approx(line["flops_per_step_per_worker"])
    assert line["share_of_matrix_rate"] == pytest.approx(line["tflops_per_worker"] / peak)
    assert 0 < line["share_of_matrix_rate"] < 1
    assert 0 <= line["data_wait_share"] < 1
    assert 0 < line["step_seconds_least"] <= seconds
    assert 0 < line["loss"] < 10


def test_inputs_read_as_real_ones(inputs: SpeedInputs) -> None:
    library = PreparedLibrary.open(inputs.library)
    library.verify()
    opened = inputs(PAPER.job(PAPER.single[0], inputs.library, "/x/y", 1, gpus=False).train)
    assert library.keys == [site.key for site in opened.base.sites]
    for key in (library.keys[0], library.keys[-1]):
        record = library.site(key)
        rms = [float(x.square().mean().sqrt()) for x in (record.a, record.b)]
        assert rms == pytest.approx([record.scale_a, record.scale_b], rel=0.1)
        assert record.a.square().mean((0, 2))[0] > 2 * record.a.square().mean((0, 2))[-1]
        assert opened.weights.read(opened.base.by_key[key]).dtype == torch.bfloat16
    states = opened.encoder().encode(["one", "two", "one"])
    assert torch.equal(states.states[0], states.states[2]) and not torch.equal(states.states[0], states.states[1])
    assert not states.states[~states.mask].any()
    index = Path(inputs.library, "index.json")
    before = index.stat().st_mtime_ns
    make_inputs(inputs.folder, TINY.size, CPU)  # they are there
    assert index.stat().st_mtime_ns == before


def test_the_plan_is_of_the_papers_shapes() -> None:
    shapes = {shape: len(sites) for shape, sites in speed_base(PAPER.size).shapes.items()}
    assert {k: 10 * n for k, n in shapes.items()} == {
        shape: len(sites) for shape, sites in get_base("wan2.1-i2v-14b").shapes.items()
    }
    cases = {case.name: case for case in PAPER.cluster}
    for case in cases.values():
        job = PAPER.job(case, "/library", "/run/speed", 4, gpus=True)
        assert job.train.micro_batches == 4 * case.parts
        assert (job.train.resident_gb == 0) is ("streamed" in case.name)
    first = cases["5x4"]
    assert 4 * first.parts * first.sites * first.effects == PAPER_SAMPLES
    assert HypernetConfig(**PAPER.hypernet) == HypernetConfig()


def test_unshared_has_the_same_samples_in_sites_of_their_own() -> None:
    sampler = Sampler((40, 4, 4), share_sites((40, 4, 4), 5), tuple(range(50)), ((0, 1),) * 50, 4)
    alone = unshared(sampler)
    assert sampler.draws == (3, 1, 1) and alone.draws == (12, 4, 4) and alone.effects_per_step == 1
    assert len(alone.row(7)) == sum(alone.widths)


def test_rates_are_of_the_work_done() -> None:
    small, large = (matrix_rate(CPU, n, n, n, torch.float32, 0.02) for n in (8, 256))
    assert 0 < small < large
    assert copy_bandwidth(CPU, 1 << 20, 0.02) > 1e8


def test_single_device(inputs: SpeedInputs, tmp_path: Path) -> None:
    rates, *lines = measure(inputs, tmp_path / "single.jsonl", "single")
    assert rates["kind"] == "rates" and rates["products"][0]["m"] == 512 and rates["copy_gb_s"] > 0
    shared, alone = lines
    for line in lines:
        check(line, rates["products"][0]["tflops"], 1)
        assert line["samples_per_step"] == 24 and line["kind"] == "single"
    assert shared["flops_per_step_per_worker"] == counted((1, 1, 1), 4, 2)
    assert alone["flops_per_step_per_worker"] == counted((4, 4, 4), 1, 2) > shared["flops_per_step_per_worker"]
    ratio = shared["samples_per_second_per_worker"] / alone["samples_per_second_per_worker"]
    assert sharing(lines) == {"3x4": pytest.approx(ratio)}


FREED = """
import gc, os, sys, tempfile, weakref
from pathlib import Path
import torch
from eval.speed.inputs import make_inputs
from eval.speed.plan import TINY
from eval.speed.steps import prepared, single_run
from ray_jobs.training.stream import resident_batches

os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
inputs = make_inputs(Path(sys.argv[1]), TINY.size, torch.device("cpu"))
torch.distributed.init_process_group("gloo", init_method=f"file://{tempfile.mkdtemp()}/meet", rank=0, world_size=1)
run = single_run(TINY, inputs, inputs.library, torch.device("cpu"))
with prepared(run, TINY, TINY.single[0]) as (engine, slots):
    engine.step(0, resident_batches(engine.run, slots, 0, 0))
    held = weakref.ref(engine.masters()[0])
    assert held() is not None
del engine
gc.collect()
assert held() is None, "the optimizer is still in memory"
"""


def test_a_case_leaves_nothing_in_memory(inputs: SpeedInputs) -> None:
    """In a process of its own: DeepSpeed changes how a process looks for GPUs."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FREED, str(inputs.folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_one_and_two_workers_of_ray(inputs: SpeedInputs, tmp_path: Path) -> None:
    rates, *lines = measure(inputs, tmp_path / "cluster.jsonl", "cluster", "--workers", "1", "2")
    names = [case.name for case in TINY.cluster]
    assert [(line["name"], line["workers"]) for line in lines] == [(name, n) for n in (1, 2) for name in names]
    for line in lines:
        check(line, rates["products"][0]["tflops"], line["workers"])
        assert line["flops_per_step_per_worker"] == counted((1, 1, 1), 4, 1)
        assert line["samples_per_step"] == 12 * line["workers"]
    first, streamed = lines[:2]
    assert first["loss"] == pytest.approx(streamed["loss"], rel=1e-5)  # the same samples, whichever way they came
    assert set(efficiency(lines)) == {(name, 2) for name in names}


def test_a_summary_leaves_out_the_warm_up_and_wants_all_reports() -> None:
    case = TINY.single[0]
    report = {"samples_per_second_per_worker": 12.0, "data_wait_share": 0.25, "memory_gb": 3.0, "loss": 0.5}
    slow = {**report, "samples_per_second_per_worker": 0.1, "data_wait_share": 0.9}
    faster = {**report, "samples_per_second_per_worker": 24.0, "data_wait_share": 0.1}
    line = summary(case, [slow, report, faster, faster], 8_000, 4_000.0, 2)
    # 24 samples take 2, 1 and 1 s.
    assert line["samples_per_second_per_worker"] == pytest.approx(18)
    assert line["data_wait_share"] == pytest.approx((0.25 * 2 + 0.1 * 1 + 0.1 * 1) / 4)
    assert line["share_of_matrix_rate"] == pytest.approx(4_000 / (4 / 3) / 4_000)
    with pytest.raises(ValueError, match="2 reports of 4"):
        summary(case, [slow, report], 8_000, 4_000.0, 2)


def test_what_is_derived() -> None:
    assert gpu_hours(640 / 3.6) == pytest.approx(150)
    line = {"stage": 2, "parameters": 1_000_000_000, "workers": 2, "memory_gb": 40.0}
    assert memory_on(line, 4) == pytest.approx(40 - 16 * (1 / 2 - 1 / 4))
    assert memory_on({**line, "stage": 1}, 2) == 40
    runs = [
        {"kind": "cluster", "name": "x", "workers": n, "samples_per_second_per_worker": v} for n, v in ((1, 10), (4, 9))
    ]
    assert efficiency(runs) == {("x", 4): pytest.approx(0.9)}
    assert efficiency(runs[1:]) == {} and sharing(runs) == {}
