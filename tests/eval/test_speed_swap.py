"""The measurements of the slot, of denoising and of canonical factors, whole and tiny, on a CPU."""

import json
from pathlib import Path

import torch
from tiny import tiny_transformer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from eval.speed import canonical, render, swap
from eval.speed.transformer import PLANS, denoiser, random_transformer


def test_the_slot_is_measured_and_leaves_the_base_alone(tmp_path: Path) -> None:
    out = tmp_path / "swap.jsonl"
    assert swap.main(["--plan", "tiny", "--device", "cpu", "--out", str(out)]) == 0
    rates, *found = [json.loads(line) for line in out.read_text().splitlines()]
    assert rates["kind"] == "rates"
    assert [line["kind"] for line in found] == ["step", "step", "swap", "swap", "swap", "base"]
    assert all(0 < line["least"] <= line["seconds"] <= line["most"] for line in found[:-1])
    assert found[-1]["same_weights"] and found[-1]["same_output_when_cleared"] and found[-1]["outputs_differ"]
    assert found[-1]["recompilations"] == 0
    assert found[1]["cost"] > -0.9 and found[2]["floor"] > 0
    assert "recompilations" in swap.table(found)


def test_a_checksum_sees_one_bit_and_one_exchange() -> None:
    model = tiny_transformer()
    known = swap.checksum(model)
    assert swap.checksum(model) == known
    weight = model.blocks[0].attn1.to_q.weight
    with torch.no_grad():
        weight.view(torch.int32)[3, 4] ^= 1
        assert swap.checksum(model) != known
        weight.view(torch.int32)[3, 4] ^= 1
        assert swap.checksum(model) == known
        weight[[0, 1]] = weight[[1, 0]]
    assert swap.checksum(model) != known


def test_canonical_factors_are_measured_and_right(tmp_path: Path) -> None:
    out = tmp_path / "canonical.jsonl"
    assert canonical.main(["--plan", "tiny", "--device", "cpu", "--out", str(out)]) == 0
    _, double, single = [json.loads(line) for line in out.read_text().splitlines()]
    assert double["name"] == "float64" and double["error"] < 1e-6 and single["error"] < 1e-4
    for line in (double, single):
        assert line["seconds"] > line["floor"] > 0 and line["sites"] == len(canonical.PLANS["tiny"].base.sites)
    assert "float32" in canonical.table([double, single])


def test_denoising_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "render.jsonl"
    backends = ["native", "_native_math", "_native_cudnn"]
    given = ["--plan", "tiny", "--device", "cpu", "--out", str(out), "--backends", *backends]
    assert render.main(given) == 0
    rates, plain, native, math, cudnn, float8, first = [json.loads(line) for line in out.read_text().splitlines()]
    assert rates["matrix"] > 0 and plain["share"] == 1
    for line in (native, math):
        assert line["share"] == line["seconds"] / plain["seconds"] and line["difference"] < 1e-5
        assert line["seconds"] > line["floor"] > 0
    assert float8["name"] == "blocks compiled, native, float8" and 1e-4 < float8["difference"] < 0.1
    assert cudnn["kind"] == "failure" and first["seconds"] > 0  # a CPU has no cuDNN
    assert "not to be had" in render.table([plain, native, math, cudnn, first])


def test_operations_of_a_step_are_those_that_pytorch_counts() -> None:
    plan = PLANS["tiny"]
    cpu = torch.device("cpu")
    model = random_transformer(plan, cpu)
    step = denoiser(model, plan, cpu)
    # Attention as two products, which is what the counter knows on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step(0)
    counts = counter.get_flop_counts()
    blocks = [counts[f"WanTransformer3DModel.blocks.{i}"] for i in range(plan.base.num_blocks)]
    assert render.step_flops(plan, model.config) == sum(sum(block.values()) for block in blocks)
