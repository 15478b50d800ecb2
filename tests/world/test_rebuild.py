"""What `p2e world rebuild` makes, skips, makes again, pauses and goes on with, on stages that take no time."""

import json
import os
import shutil
from pathlib import Path

import pytest
import toy_stages
from cli_runner import assert_mistake, files_in, run_cli, run_well

from p2e.errors import InputError
from p2e.world import rebuild
from p2e.world.launch import launch
from p2e.world.rebuild import run
from p2e.world.stages import Ledger


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "STAGES", dict(toy_stages.STAGES))
    monkeypatch.setattr(toy_stages, "TABLE", {"first": 1})


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the stages that ran, in order."""
    names: list[str] = []
    for name, stage in list(rebuild.STAGES.items()):

        def noted(job, stage=stage):
            names.append(stage.name)
            stage.make(job)

        rebuild.STAGES[name] = toy_stages.Stage(**{**vars(stage), "make": noted})
    return names


def states_of(out: Path, *settings: str) -> dict[str, tuple[str, str]]:
    words = [word for pair in settings for word in ("--set", pair)]
    rows = json.loads(run_well("world", "status", "--out", out, "--json", *words))
    return {row["stage"]: (row["state"], row["reason"]) for row in rows}


def grown(out: Path) -> dict[str, int]:
    return json.loads((out / "grown.json").read_text())


def test_all_stages_run_once(tmp_path: Path, ran: list[str], capsys: pytest.CaptureFixture[str]):
    run([], tmp_path)
    assert ran == ["seed", "grow", "report"] and grown(tmp_path)["sum"] == 12
    capsys.readouterr()
    run([], tmp_path)
    assert ran == ["seed", "grow", "report"]
    assert capsys.readouterr().out == "".join(f"stage {name}: unchanged, skipped\n" for name in rebuild.STAGES)
    assert not (tmp_path / ".work").exists()


def test_the_record_says_how(tmp_path: Path):
    run([], tmp_path, ["grow.steps=5"])
    record = json.loads((tmp_path / "stages.json").read_text())
    assert list(record) == ["seed", "grow", "report"]
    grow = record["grow"]
    assert grow["settings"] == {"steps": 5, "kill_at": None, "rates": {"up": 1}} and grow["workers"] == 1
    assert set(record["seed"]["outputs"]) == {"seed/number.json", "seed/note.txt"}
    assert grow["device"] and grow["p2e_version"] and grow["finished"] and grow["seconds"] >= 0
    assert grow["commit"] is None or len(grow["commit"].rstrip("+")) == 40


def test_a_changed_setting_runs_the_stage_and_what_rests_on_it(tmp_path: Path, ran: list[str]):
    run([], tmp_path)
    assert states_of(tmp_path, "grow.rates.up=2") == {
        "seed": ("done", "unchanged"),
        "grow": ("stale", "rates.up was 1 and is 2"),
        "report": ("stale", "grow will be made anew"),
    }
    ran.clear()
    run([], tmp_path, ["grow.rates.up=2"])
    assert ran == ["grow", "report"] and grown(tmp_path)["sum"] == 24


def test_what_comes_out_the_same_makes_nothing_stale(tmp_path: Path, ran: list[str]):
    run([], tmp_path)
    ran.clear()
    run([], tmp_path, force=["seed"])
    assert ran == ["seed"]


def test_a_changed_table_or_version_makes_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run([], tmp_path)
    monkeypatch.setitem(toy_stages.TABLE, "second", 2)
    assert states_of(tmp_path)["seed"] == ("stale", "the project's tables or pictures have changed")
    monkeypatch.undo()
    newer = {name: toy_stages.Stage(**{**vars(stage), "version": 2}) for name, stage in toy_stages.STAGES.items()}
    monkeypatch.setattr(rebuild, "STAGES", newer)
    assert states_of(tmp_path)["seed"] == ("stale", "its code has changed (version 1, now 2)")


def test_a_later_call_takes_the_inputs_that_are_there(tmp_path: Path, ran: list[str]):
    run(["seed"], tmp_path, ["seed.value=5"])
    run(["report", "grow"], tmp_path)  # in the order of the stages
    assert ran == ["seed", "grow", "report"] and grown(tmp_path)["sum"] == 20


def test_a_damaged_output_is_made_again(tmp_path: Path, ran: list[str]):
    run([], tmp_path)
    (tmp_path / "grown.json").write_text("{}")
    (tmp_path / "seed" / "note.txt").unlink()
    ran.clear()
    found = states_of(tmp_path)
    assert found["grow"] == ("stale", "grown.json is not what the stage wrote")
    assert found["seed"] == ("missing", "seed/note.txt is gone")
    assert_mistake(run_cli("world", "rebuild", "report", "--out", tmp_path, "--gpus", 1), "run the stage grow first")
    run([], tmp_path)
    assert ran == ["seed", "grow"] and grown(tmp_path)["sum"] == 12


def test_force_runs_what_is_done(tmp_path: Path, ran: list[str]):
    run([], tmp_path)
    ran.clear()
    run([], tmp_path, force=["grow"])
    assert ran == ["grow"]  # its numbers are the same


def test_a_paused_run_goes_on(tmp_path: Path, ran: list[str]):
    run([], tmp_path)
    ran.clear()
    call = ("world", "rebuild", "--out", tmp_path, "--set", "grow.steps=3", "--gpus", 1, "--pause-after", 0)
    for step in (1, 2):
        result = run_cli(*call)
        assert result.code == 75 and not result.err
        assert result.out.endswith(f"grow: paused after {step} steps; the same command goes on\n")
        assert states_of(tmp_path, "grow.steps=3")["grow"][0] == "paused"
        assert grown(tmp_path)["sum"] == 12  # what was there stays until there is something new
    assert run_cli(*call).code == 75  # the third step, and no time for another stage
    assert grown(tmp_path) == {"sum": 9, "began_at": 2}
    assert run_cli(*call).code == 0
    assert ran == ["grow"] * 3 + ["report"]


def test_other_settings_begin_anew(tmp_path: Path):
    assert run_cli("world", "rebuild", "seed", "grow", "--out", tmp_path, "--pause-after", 0).code == 75
    assert run_cli("world", "rebuild", "seed", "grow", "--out", tmp_path, "--pause-after", 0).code == 75
    assert states_of(tmp_path)["grow"][0] == "paused"
    run([], tmp_path, ["grow.steps=2"])
    assert grown(tmp_path) == {"sum": 6, "began_at": 0}


def test_a_forced_run_goes_on_too(tmp_path: Path):
    run([], tmp_path, ["grow.steps=2"])
    call = ("world", "rebuild", "grow", "--force", "grow", "--out", tmp_path, "--set", "grow.steps=2")
    assert run_cli(*call, "--pause-after", 0).code == 75
    assert run_cli(*call, "--pause-after", 0).code == 0
    assert grown(tmp_path)["began_at"] == 1


def test_sigterm_pauses(tmp_path: Path):
    call = ("world", "rebuild", "--out", tmp_path, "--set", "grow.kill_at=2")
    result = run_cli(*call)
    assert result.code == 75 and "paused after 2 steps" in result.out
    assert run_cli(*call).code == 0
    assert grown(tmp_path) == {"sum": 12, "began_at": 2}


def test_a_failing_stage_leaves_nothing_that_looks_done(tmp_path: Path):
    run([], tmp_path)
    before = {path: path.read_bytes() for path in files_in(tmp_path)}

    def half(job):
        (job.made / "seed").mkdir()
        (job.made / "seed" / "number.json").write_text("5")
        raise OSError("the disk is gone")

    rebuild.STAGES["seed"] = toy_stages.Stage(**{**vars(toy_stages.STAGES["seed"]), "make": half})
    with pytest.raises(OSError, match="disk"):
        run([], tmp_path, ["seed.value=5"])
    assert {path: path.read_bytes() for path in files_in(tmp_path) if ".work" not in path.parts} == before
    rebuild.STAGES["seed"] = toy_stages.STAGES["seed"]
    run([], tmp_path, ["seed.value=5"])
    assert grown(tmp_path)["sum"] == 20


def test_mistakes_are_one_line(tmp_path: Path):
    call = ("world", "rebuild", "--out", tmp_path)
    assert_mistake(run_cli(*call, "sead"), "sead", "seed, grow, report")
    assert_mistake(run_cli(*call, "--force", "sead"), "sead")
    assert_mistake(run_cli(*call, "grow", "--force", "seed"), "--force seed")
    assert_mistake(run_cli(*call, "--set", "grow.stepz=2"), "stepz")
    assert_mistake(run_cli(*call, "--gpus", 99), "--gpus 99")
    assert_mistake(run_cli(*call, "grow"), "run the stage seed first")
    (tmp_path / "stages.json").write_text("{broken")
    assert_mistake(run_cli(*call), "stages.json", "remove it")
    assert_mistake(run_cli("world", "status", "--out", tmp_path), "stages.json")


def test_the_table_of_states(tmp_path: Path):
    run(["seed"], tmp_path)
    lines = run_well("world", "status", "--out", tmp_path).splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["seed", "done"], ["grow", "missing"], ["report", "missing"]]


def test_several_gpus_get_the_same_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def here(module: str, arguments: list[str], workers: int) -> object:
        assert (module, workers) == ("p2e.world.rebuild", 2)
        with pytest.raises(SystemExit) as stop:
            rebuild.main(arguments)
        return stop.value.code

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    # Where DeepSpeed was imported before, PyTorch goes by the count to tell whether there are GPUs.
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("p2e.world.launch.launch", here)
    run(["seed", "grow"], tmp_path, ["grow.steps=2"])
    call = ("world", "rebuild", "seed", "grow", "--force", "grow", "--out", tmp_path, "--set", "grow.steps=2")
    assert run_cli(*call, "--pause-after", 0).code == 75
    assert states_of(tmp_path, "grow.steps=2")["grow"][0] == "paused"


@pytest.mark.slow
def test_several_workers_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    )
    settings = ["grow.steps=2", "grow.kill_at=1"]
    call = ["seed", "grow", "--out", str(tmp_path), *(word for pair in settings for word in ("--set", pair))]
    assert launch("toy_stages", call, 2) == 75
    assert json.loads((tmp_path / "stages.json").read_text())["seed"]["workers"] == 2
    run([], tmp_path, settings)  # one worker goes on where two stopped
    assert grown(tmp_path) == {"sum": 6, "began_at": 1}


def test_what_was_made_elsewhere_is_adopted(tmp_path: Path, ran: list[str]):
    run([], tmp_path / "there", ["seed.value=5"])
    here = tmp_path / "here"
    shutil.copytree(tmp_path / "there" / "seed", here / "seed")
    with pytest.raises(InputError, match="not made yet"):
        run(["grow"], here)
    ran.clear()
    run([], here, ["seed.value=5"], adopt=["seed"])
    assert ran == ["grow", "report"]
    assert states_of(here, "seed.value=5")["seed"][0] == "done"
    assert states_of(here, "seed.value=6")["seed"][0] == "stale"
    with pytest.raises(InputError, match="cannot be adopted"):
        run(["seed"], tmp_path / "empty", adopt=["seed"])


def test_stages_side_by_side_keep_one_anothers_records(tmp_path: Path):
    run(["seed"], tmp_path)
    beside = Ledger(tmp_path, rebuild.STAGES)  # opened before the other stage is recorded
    run(["grow"], tmp_path)
    seed = rebuild.STAGES["seed"]
    facts = {"seconds": 0.0, "workers": 1, "device": "cpu", "p2e_version": "0", "commit": None, "finished": "now"}
    beside.adopt(seed, beside.judge(seed, seed.settings({})), **facts)
    assert json.loads((tmp_path / "stages.json").read_text()).keys() == {"seed", "grow"}
    assert states_of(tmp_path)["grow"] == ("done", "unchanged")
