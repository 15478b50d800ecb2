"""The endpoint's measurement in small, on a real Ray: every case, and what its tables say."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from eval.speed.serve import plot, table
from eval.speed.serve_load import open_loop, percentiles

ROOT = Path(__file__).parents[2]


def test_an_open_loop_does_not_wait_for_answers() -> None:
    """Each request takes a second; five of them, sent a tenth of a second apart, end together."""

    async def send(_client: httpx.AsyncClient, index: int) -> httpx.Response:
        await asyncio.sleep(1)
        if index == 4:
            raise httpx.ConnectError("gone")
        return httpx.Response(200, json={"index": index})

    found = asyncio.run(open_loop(send, 10, 5, "http://127.0.0.1:1"))
    assert [answer.status for answer in found] == [200, 200, 200, 200, 0]
    assert [answer.body.get("index") for answer in found] == [0, 1, 2, 3, None]
    assert all(0.9 < answer.seconds < 2 for answer in found)


def test_percentiles() -> None:
    found = percentiles([i / 100 for i in range(100)])
    assert (found["p50"], found["p95"], found["p99"], found["most"]) == (0.5, 0.95, 0.99, 0.99)
    assert set(percentiles([2.0]).values()) == {2.0}


@pytest.mark.slow
def test_cases_in_small(tmp_path: Path) -> None:
    """All but scaling, which is mostly waiting for a second renderer to come and go."""
    out = tmp_path / "serve.jsonl"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "eval.speed.serve", "--plan", "tiny", "--out", str(out), "--only", "known", "new",
         "videos", "kills"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(line["failed"] == 0 for line in found if line["kind"] == "load")
    kills = found[-1]
    assert kills["not_ended"] == kills["files_twice"] == 0 and sum(kills["ends"].values()) == kills["jobs"] == 12
    assert "| effect in the store |" in done.stdout and "12 jobs in" in done.stdout


def test_scaling_is_told_and_drawn(tmp_path: Path) -> None:
    curve = [(0.0, 0, 1), (1.0, 6, 1), (5.0, 4, 2), (9.0, 0, 2), (20.0, 0, 1)]
    line = {"kind": "scaling", "second_at": 5.0, "empty_at": 9.0, "one_again_at": 20.0, "jobs": 6, "curve": curve}
    assert "second renderer after 5.0 s" in table([line])
    plot([line], tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes()[:4] == b"\x89PNG"
