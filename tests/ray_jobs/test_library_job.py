"""Training many effects on a cluster: as `p2e adapt` does each, failures as rows, nothing trained twice."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import yaml
from local_ray import local_ray, wait_until
from tiny import tiny_pipeline

from p2e.adapt.config import FineTuneConfig
from p2e.adapt.run import adapt
from p2e.bases import open_base
from p2e.errors import ConfigError, InputError
from p2e.lora.library import Manifest, check_library
from p2e.render.video import Clip, write_mp4
from ray_jobs.command import settings_of
from ray_jobs.library import LibraryJob, LibraryReport, train_library

ADAPT: dict[str, Any] = {"rank": 2, "steps": 2, "precision": "float32", "buckets": [[5, 32, 32]]}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with local_ray() as address:
        yield address


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline().save_pretrained(folder)
    return folder


def write_clips(folder: Path, seed: int) -> str:
    random = np.random.default_rng(seed)
    write_mp4(folder / "0.mp4", Clip(random.integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)))
    (folder / "0.txt").write_text("a red light")
    return str(folder)


def job(pipeline: Path, folder: Path, *effects: dict[str, Any], **changes: Any) -> LibraryJob:
    described = [{"prompts": [f"it is {effect['effect']}"]} | effect for effect in effects]
    recipe = ADAPT | {"cache": str(folder / "cache")}
    values = {"base": str(pipeline), "output": str(folder / "out"), "effects": described, "adapt": recipe}
    return LibraryJob.parse(values | changes)


def statuses(report: LibraryReport) -> dict[str, str]:
    return {row.effect: row.status for row in report.effects}


def test_effects_are_trained_once_and_one_may_fail(cluster: str, pipeline: Path, tmp_path: Path) -> None:
    clips = {name: write_clips(tmp_path / name, seed) for seed, name in enumerate(("red", "blue"))}
    effects = [
        {"effect": "red", "clips": clips["red"], "adapt": {"steps": 3}},
        {"effect": "gone", "clips": str(tmp_path / "nowhere")},
        {"effect": "misfit", "clips": clips["red"], "adapt": {"buckets": [[4, 32, 32]]}},
        {"effect": "blue", "clips": clips["blue"], "split": "heldout", "weight": 2.0},
    ]
    asked = job(pipeline, tmp_path, *effects)
    report = train_library(asked)
    assert statuses(report) == {"red": "trained", "gone": "failed", "misfit": "failed", "blue": "trained"}
    errors = {row.effect: row.error for row in report.effects}
    assert "no such folder" in errors["gone"] and "4 n + 1" in errors["misfit"]
    assert all("\n" not in error for error in errors.values())
    out = tmp_path / "out"
    assert LibraryReport.load(out / "report.json") == report

    # Each is what `p2e adapt` makes of the same clips.
    settings = FineTuneConfig.parse(ADAPT | {"steps": 3, "cache": str(tmp_path / "cache")})
    adapt(clips["red"], pipeline, tmp_path / "red.safetensors", settings)
    assert (out / "loras/red.safetensors").read_bytes() == (tmp_path / "red.safetensors").read_bytes()
    manifest = Manifest.load(out / "manifest.yaml")
    assert [(e.effect, e.split, e.weight) for e in manifest.entries] == [("red", "train", 1), ("blue", "heldout", 2)]
    assert check_library(manifest, open_base(pipeline)[0]).ok

    # Again: what is done stays; a new caption, or a damaged file, is trained anew.
    written = {path: path.stat().st_mtime_ns for path in (out / "loras").iterdir()}
    assert statuses(train_library(asked)) == {"red": "kept", "gone": "failed", "misfit": "failed", "blue": "kept"}
    assert written == {path: path.stat().st_mtime_ns for path in (out / "loras").iterdir()}
    (Path(clips["blue"]) / "0.txt").write_text("a blue light")
    assert statuses(train_library(asked))["blue"] == "trained"
    (out / "loras/blue.safetensors").write_bytes(b"")
    assert statuses(train_library(asked)) == {"red": "kept", "gone": "failed", "misfit": "failed", "blue": "trained"}


def test_a_killed_worker_goes_on_from_its_state(cluster: str, pipeline: Path, tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "red", 0)
    steps = {"steps": 120, "save_every": 5}
    asked = job(pipeline, tmp_path, {"effect": "red", "clips": clips, "adapt": steps})
    reports: list[LibraryReport] = []
    run = Thread(target=lambda: reports.append(train_library(asked)))
    run.start()
    work = tmp_path / "out/work"
    wait_until(lambda: any(work.glob("*/.red.safetensors.state")), "a saved state")
    (mark,) = work.glob("attempts/*/*/0")
    os.kill(int(mark.read_text().split()[1]), signal.SIGKILL)
    wait_until(lambda: any(work.glob("attempts/*/*/1")), "another attempt")
    run.join(120)
    assert [statuses(report) for report in reports] == [{"red": "trained"}]
    settings = FineTuneConfig.parse(ADAPT | steps | {"cache": str(tmp_path / "cache")})
    adapt(clips, pipeline, tmp_path / "undisturbed.safetensors", settings)
    assert (tmp_path / "out/loras/red.safetensors").read_bytes() == (tmp_path / "undisturbed.safetensors").read_bytes()
    assert not list(work.glob("*/.red*"))


def test_mistakes_are_said_before_any_work(cluster: str, pipeline: Path, tmp_path: Path) -> None:
    red = {"effect": "red", "clips": "clips"}
    with pytest.raises(ConfigError, match="red appears twice"):
        job(pipeline, tmp_path, red, {"effect": "Red", "clips": "clips"})
    with pytest.raises(ConfigError, match="effect"):
        job(pipeline, tmp_path, {"effect": "../red", "clips": "clips"})
    with pytest.raises(ConfigError, match="shared storage"):
        job(pipeline, tmp_path, red, output="s3://bucket/out")
    with pytest.raises(ConfigError, match="stpes"):
        job(pipeline, tmp_path, red | {"adapt": {"stpes": 3}})
    with pytest.raises(InputError, match="a name without weights"):
        train_library(job(pipeline, tmp_path, red, base="wan2.1-i2v-14b"))


def test_settings_come_from_a_file_and_from_flags(pipeline: Path, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        yaml.safe_dump({"output": "here", "effects": [{"effect": "red", "clips": "c", "prompts": ["red"]}]})
    )
    asked = settings_of(LibraryJob, "", ["--config", str(file), "--output", "there", "--adapt", "{steps: 7}"])
    assert (asked.output, asked.effects[0].effect, asked.adapt.steps) == ("there", "red", 7)
    with pytest.raises(ConfigError, match=r"--adapt .*not YAML"):
        settings_of(LibraryJob, "", ["--config", str(file), "--adapt", "{steps: "])
    with pytest.raises(ConfigError, match="output"):
        settings_of(LibraryJob, "", ["--effects", "[]"])
