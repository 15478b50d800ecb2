"""Parts of the training job that need no cluster: settings, loggers, damaged checkpoints, errors of workers."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train.v2._internal.util import construct_user_exception_with_traceback
from ray.train.v2.api.exceptions import WorkerGroupError

from p2e.config import TrainConfig
from p2e.errors import ConfigError, InputError
from p2e.files import sha256
from ray_jobs.train import load, main
from ray_jobs.training.checkpoints import damage
from ray_jobs.training.config import TrainJob
from ray_jobs.training.job import cause
from ray_jobs.training.loggers import Loggers, check_loggers
from ray_jobs.training.storage import LIST, mend
from ray_jobs.training.stream import Slots


def job(folder: Path, **changes: Any) -> TrainJob:
    train = TrainConfig(library="prepared", base="world", output=str(folder / "run"), steps=4, micro_batches=4)
    return TrainJob.parse({"train": train.model_dump(mode="json")} | changes)


def test_a_mistake_is_one_line_and_exit_code_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "job.yaml"
    for text, says in (
        ("train: {no_such_key: 1}\n", "job.yaml: train"),
        ("train: [", "not valid YAML"),
        ("- 1\n", "job.yaml"),
    ):
        config.write_text(text)
        assert main(["--config", str(config)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("p2e: ") and error.count("\n") == 1 and says in error
    config.write_text(job(tmp_path).to_json())
    assert main(["--config", str(config), "--set", "train.steps"]) == 2
    assert "train.steps=100" in capsys.readouterr().err
    assert main(["--config", str(config), "--set", "train.library=/no/such"]) == 2
    assert "/no/such" in capsys.readouterr().err
    assert load(str(config), ["train.steps=7", "stream.window=5"]).train.steps == 7


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"workers": [3, 2]}, "least, most"),
        ({"workers": 5}, "micro-batches"),
        ({"zero": {"stage": 0, "parameters": "bfloat16"}}, "stage: 1 or more"),
        ({"keep": 1}, "keep"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        job(tmp_path, **changes)


@pytest.mark.parametrize(("parts", "world"), [(4, 1), (4, 2), (4, 3), (5, 4), (32, 32), (640, 24)])
def test_every_micro_batch_is_one_workers(parts: int, world: int) -> None:
    slots = Slots(parts, world)
    for step in (0, 7):
        counted = [
            slots.index(step, slot, rank)
            for slot in range(slots.each)
            for rank in range(world)
            if slots.counts(slot, rank)
        ]
        assert counted == list(range(step * parts, (step + 1) * parts))


def test_damage_is_found(tmp_path: Path) -> None:
    assert damage(tmp_path) == "checkpoint.json is missing or not valid"
    shard = tmp_path / "shard.pt"
    shard.write_bytes(b"whole")
    files = {"shard.pt": {"bytes": 5, "sha256": sha256(shard)}}
    (tmp_path / "checkpoint.json").write_text(json.dumps({"format": "p2e-ray-1", "files": files}))
    assert damage(tmp_path) is None
    shard.write_bytes(b"whale")
    assert damage(tmp_path) == "shard.pt is corrupt"
    shard.write_bytes(b"who")
    assert damage(tmp_path) == "shard.pt has 3 bytes instead of 5"
    shard.unlink()
    assert damage(tmp_path) == "shard.pt is missing"
    (tmp_path / "checkpoint.json").write_text(json.dumps({"format": "p2e-ray-1", "files": files})[:-9])
    assert damage(tmp_path) == "checkpoint.json is missing or not valid"


def test_a_broken_list_of_checkpoints_is_made_anew(tmp_path: Path) -> None:
    def listed() -> list[str]:
        state = json.loads((tmp_path / LIST).read_text())
        names = [entry["checkpoint_dir_name"] for entry in state["checkpoint_results"]]
        assert len(state["checkpoint_report_indices"]) == len(names)
        assert (state["latest_checkpoint_result"] or {}).get("checkpoint_dir_name") == (names[-1] if names else None)
        return names

    mend(str(tmp_path))
    assert list(tmp_path.iterdir()) == []  # a new run has no list
    for name, step in (("checkpoint_b", 2), ("checkpoint_a", 10)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoint.json").write_text(json.dumps({"step": step}))
    (tmp_path / "checkpoint_half").mkdir()
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / LIST).write_text('{"checkpoint_results": [{"checkpoint_d')
    mend(f"file://{tmp_path}")
    assert listed() == ["checkpoint_b", "checkpoint_a"]
    whole = (tmp_path / LIST).stat().st_mtime_ns
    mend(str(tmp_path))
    assert (tmp_path / LIST).stat().st_mtime_ns == whole  # what is in order stays
    shutil.rmtree(tmp_path / "checkpoint_a")
    mend(str(tmp_path))
    assert listed() == ["checkpoint_b"]
    shutil.rmtree(tmp_path / "checkpoint_b")
    mend(str(tmp_path))
    assert listed() == []


def test_a_workers_mistake_is_the_jobs() -> None:
    wrapped = construct_user_exception_with_traceback(InputError("a: no such file; check the path"))
    found = cause(WorkerGroupError("two workers failed", {0: RuntimeError("connection lost"), 1: wrapped}))
    assert isinstance(found, InputError) and str(found) == "a: no such file; check the path"
    assert cause(WorkerGroupError("one worker failed", {0: RuntimeError("connection lost")})) is None


class Recorder:
    """Stands in for MLflow and for Weights & Biases: every call, with its arguments."""

    def __init__(self, **attributes: Any) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.__dict__.update(attributes)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append((name, arguments, options))
            return [] if name == "search_runs" else self

        return call

    def named(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(arguments, options) for called, arguments, options in self.calls if called == name]


def test_metrics_go_to_every_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow, wandb = Recorder(), Recorder()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    asked = job(tmp_path, log={"mlflow": "http://tracking:5000", "wandb": "project"})
    check_loggers(asked)
    logs = Loggers(asked, 0)
    logs.scalars(2, {"loss": 0.5, "norm_ratio": float("nan")})
    logs.close()
    assert mlflow.named("set_tracking_uri") == [(("http://tracking:5000",), {})]
    assert mlflow.named("start_run") == [((), {"run_id": None, "run_name": "run"})]
    assert mlflow.named("log_metrics") == [(({"loss": 0.5},), {"step": 2})]
    assert len(mlflow.named("end_run")) == len(wandb.named("finish")) == 1
    ((_, options),) = wandb.named("init")
    assert (options["project"], options["id"], options["resume"]) == ("project", "run", "allow")
    assert wandb.named("log") == [(({"loss": 0.5},), {"step": 2})]
    assert list((tmp_path / "run/tensorboard").iterdir())

    # A continuation of the run goes on in the same place.
    known = SimpleNamespace(info=SimpleNamespace(run_id="abc"))
    monkeypatch.setattr(mlflow, "search_runs", lambda **_: [known], raising=False)
    Loggers(asked, 2).close()
    assert mlflow.named("start_run")[-1][1]["run_id"] == "abc"


def test_a_log_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"log\.mlflow: mlflow is not installed"):
        check_loggers(job(tmp_path, log={"mlflow": "http://tracking:5000"}))
