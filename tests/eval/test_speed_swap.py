"""The measurements of the slot and of canonical factors, whole and tiny, on a CPU."""

import json
from pathlib import Path

import torch
from tiny import tiny_transformer

from eval.speed import canonical, swap


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
