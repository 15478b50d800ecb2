"""The measurement of prediction, whole and tiny, on a CPU."""

import json
from pathlib import Path

import pytest
import torch

from eval.speed.predict import CASES, PLANS, HostWeights, main, table, trained_errors
from eval.speed.rates import host_bandwidth


def test_every_case_runs_and_says_how_far_from_its_floor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "predict.jsonl"
    assert main(["--plan", "tiny", "--device", "cpu", "--out", str(out)]) == 0
    rates, *found = [json.loads(line) for line in out.read_text().splitlines()]
    assert rates["kind"] == "rates" and rates["matrix"] > 0 and rates["host"] > 0
    assert [line["name"] for line in found] == list(CASES)
    by_name = {line["name"]: line for line in found}
    for line in found:
        assert 0 < line["least"] <= line["seconds"] <= line["most"]
        assert 0 < line["floor"] < line["seconds"]  # nothing is faster than its floor
    assert by_name["plain"]["floor"] == pytest.approx(by_name["one"]["floor"] + by_name["binding"]["floor"], rel=0.2)
    assert by_name["eight"]["floor"] == pytest.approx(8 * by_name["one"]["floor"], rel=0.01)
    assert capsys.readouterr().out.rstrip().endswith(table([rates, *found]))


def test_errors_on_trained_weights() -> None:
    """As `--errors` measures them; a sixteenth of the sites. Float8 is coarse: a quarter of the update, not 2%."""
    errors = trained_errors(torch.device("cpu"), effects=3, every=16)
    assert 0.005 < errors["bfloat16"]["mean"] < 0.06
    assert 0.05 < errors["float8"]["mean"] <= errors["float8"]["worst"] < 0.4


def test_weights_in_host_memory_are_of_their_shapes() -> None:
    plan = PLANS["tiny"]
    weights = HostWeights(plan.base, 1, pinned=False)
    assert all(weights.read(site).shape == (site.d_out, site.d_in) for site in plan.base.sites)
    assert host_bandwidth(torch.device("cpu"), 1 << 16, 0.02) > 1e8
