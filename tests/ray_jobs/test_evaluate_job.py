"""A sweep on a cluster of its own: killed and run again, clips and metrics that break, and nothing done twice."""

import json
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from local_ray import local_ray, start_job, wait_until

from eval.run_files import RunFiles, by_cell
from p2e.errors import ConfigError
from ray_jobs.evaluate import EvaluateJob, EvaluateReport, evaluate

pytestmark = pytest.mark.slow

METHODS = {"Still": "still", "Base": "base", "LoRA": "lora", "Zero-shot": "zero"}
SUITE: dict[str, Any] = {
    "name": "small", "base": "world", "library": "world", "checkpoint": "world",
    "effects": {"world": "shipped", "only": ["red_mood", "levitation"]}, "scenes": {"world": True, "limit": 2},
    "methods": [{"title": title, "column": column} for title, column in METHODS.items()],
    "metrics": [{"name": "oracle"}, {"name": "sweep_metric:Brightness", "options": {"breaks_on": "levitation"}}],
    "render": {"steps": 2}, "reference": "LoRA", "baseline": "Base",
}  # fmt: skip
CLIPS = 2 + 3 * 4  # a still is of a scene alone


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with local_ray() as address:
        yield address


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("suite") / "small.yaml"
    path.write_text(yaml.safe_dump(SUITE))
    return str(path)


@pytest.fixture(scope="module")
def whole(cluster: str, suite: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EvaluateReport]:
    """A run that nothing broke."""
    output = tmp_path_factory.mktemp("whole")
    return output, evaluate(job(suite, output))


def job(suite: str, output: Path, **changes: Any) -> EvaluateJob:
    return EvaluateJob.parse({"suite": suite, "output": str(output), "rows_per_task": 1} | changes)


def table(output: Path) -> dict[tuple[str, ...], tuple[float | None, str, str]]:
    files = RunFiles.of(output)
    cells = by_cell(files.clips(), files.scores())
    return {cell: (score.value, score.error, score.key) for cell, score in cells.items()}


def lines(output: Path) -> list[str]:
    path = output / "scores/metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_a_run(whole: tuple[Path, EvaluateReport]) -> None:
    output, report = whole
    assert report == EvaluateReport(made=CLIPS, kept=0, failed=0, scored=32, nulls=8)
    rows = RunFiles.of(output).clips()
    assert [row.method for row in rows] == [title for title in METHODS for _ in range(4)]
    assert len({row.clip for row in rows}) == CLIPS and all((output / str(row.video)).is_file() for row in rows)
    scores = table(output)
    assert len(scores) == 4 * 2 * 2 * 2
    for (method, effect, _, metric), (value, error, _) in scores.items():
        broken = metric == "brightness" and effect == "levitation"
        assert (value is None) == broken, (method, effect, metric, error)
        assert error == ("internal: ZeroDivisionError: this one is too dark" if broken else "")
        if (method, metric) == ("Still", "oracle"):
            assert value == pytest.approx(0, abs=0.1)
    timing = json.loads((output / "timing.json").read_text())
    assert timing["clips"] == CLIPS - 2 and timing["scores"] == 32 and timing["clips_per_minute"] > 0
    for stage in ("render", "metrics"):
        assert timing["stages"][stage]["actors"] >= 1 and 0 <= timing["stages"][stage]["idle_share"] < 1
        assert 0 < timing["stages"][stage]["busy_s"] < timing["wall_s"] * timing["stages"][stage]["actors"]


def test_killed_and_run_again(cluster: str, suite: str, whole: tuple[Path, EvaluateReport], tmp_path: Path) -> None:
    arguments = ("--suite", suite, "--output", tmp_path, "--rows-per-task", 1)
    process = start_job(cluster, "ray_jobs.evaluate", *arguments)
    wait_until(lambda: len(lines(tmp_path)) >= 8 or process.poll() is not None, "the first scores", 240)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = lines(tmp_path)
    assert process.returncode == -signal.SIGKILL and 8 <= len(before) < 32
    with (tmp_path / "scores/metrics.jsonl").open("a") as file:
        file.write('{"key": "half a li')  # as the kernel may leave it
    report = evaluate(job(suite, tmp_path))
    assert report.scored == 32 - len(before) and 0 < report.made < CLIPS
    after = lines(tmp_path)
    assert (
        after[: len(before)] == before and Counter(json.loads(line)["key"] for line in after).most_common(1)[0][1] == 1
    )
    assert table(tmp_path) == table(whole[0])
    assert (tmp_path / "clips.jsonl").read_bytes() == (whole[0] / "clips.jsonl").read_bytes()

    # Once more: nothing is done.
    there = {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix in (".mp4", ".png", ".safetensors")
    }
    assert evaluate(job(suite, tmp_path)) == EvaluateReport(kept=CLIPS)
    assert there == {path: path.stat().st_mtime_ns for path in there} and lines(tmp_path) == after


def test_a_broken_clip_is_a_null_until_it_is_made_anew(
    suite: str, whole: tuple[Path, EvaluateReport], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(whole[0], output)
    changes: dict[str, Any] = {"methods": ["Base"], "only": ["red_mood"]}
    row = next(row for row in RunFiles.of(output).clips() if row.method == "Base" and row.effect == "red_mood")
    (output / str(row.video)).write_bytes(b"no video")
    (output / "scores/metrics.jsonl").unlink()
    report = evaluate(job(suite, output, **changes))
    assert (report.made, report.kept, report.scored, report.nulls) == (0, 2, 4, 2)
    broken = [score for score in RunFiles.of(output).scores().values() if score.clip == row.clip]
    assert len(broken) == 2 and all(score.error.startswith("not_a_video: ") for score in broken)
    assert evaluate(job(suite, output, **changes)).scored == 0
    again = evaluate(job(suite, output, **changes, retry_errors=True))
    assert (again.made, again.scored, again.nulls) == (1, 2, 0)
    cells = [cell for cell in table(whole[0]) if cell[:2] == ("Base", "red_mood")]
    assert len(cells) == 4 and {cell: table(output)[cell] for cell in cells} == {c: table(whole[0])[c] for c in cells}


def test_what_cannot_be_had_is_said_first(cluster: str, suite: str, tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    for metrics, says in (
        ([{"name": "sharpness"}], "no metric is named sharpness"),
        ([{"name": "sweep_metric:NoMetric"}], "cannot be opened"),
    ):
        path.write_text(yaml.safe_dump(SUITE | {"metrics": metrics}))
        with pytest.raises(ConfigError, match=says):
            evaluate(job(str(path), tmp_path / "run"))
    assert not (tmp_path / "run/clips").exists()
