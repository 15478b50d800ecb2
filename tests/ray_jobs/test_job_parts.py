"""What the jobs share: their example settings, files behind URLs, attempts that end, and a session that is closed."""

import json
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import torch
import yaml

from p2e.config import Settings
from p2e.errors import InputError, OutputError
from p2e.files import SafetensorsFile, atomic_path, file_sizes, read_text, write_safetensors, write_text
from p2e.lora.shards import file_stamp
from ray_jobs.attempts import Attempts
from ray_jobs.library import LibraryJob
from ray_jobs.prepare_passes import PrepareJob
from ray_jobs.render import RenderJob
from ray_jobs.rows import read_rows
from ray_jobs.session import exists, failure, remove

ROOT = Path(__file__).parents[2]
CONFIGS: dict[str, type[Settings]] = {"prepare": PrepareJob, "library": LibraryJob, "render": RenderJob}


@pytest.mark.parametrize("name", CONFIGS)
def test_example_settings_are_valid(name: str) -> None:
    path = ROOT / f"ray_jobs/configs/{name}_world.yaml"
    settings = CONFIGS[name].load(path)
    assert yaml.safe_load(path.read_text()).keys() == settings.model_fields_set
    if isinstance(settings, RenderJob):
        rows = read_rows(str(ROOT / settings.rows))
        assert all(Path(lora).is_file() for row in rows for lora in row.files().values())
        assert [row.strength for row in rows] == [1, 1, 0.5]


def test_files_behind_urls() -> None:
    folder = "memory://test_files_behind_urls"
    assert file_sizes(folder) == {} and not exists(folder)
    write_safetensors(f"{folder}/deep/x.safetensors", {"x": torch.arange(3.0)})
    write_text(f"{folder}/deep/a.txt", "über")
    assert file_sizes(f"{folder}/deep").keys() == {"x.safetensors", "a.txt"}
    with SafetensorsFile(f"{folder}/deep/x.safetensors") as file:
        assert file.read("x").tolist() == [0, 1, 2]
    with pytest.raises(KeyError), atomic_path(f"{folder}/deep/a.txt") as path:
        path.write_text("half")
        raise KeyError
    assert read_text(f"{folder}/deep/a.txt") == "über"
    remove(folder)
    remove(folder)
    assert not exists(folder)
    with pytest.raises(OutputError, match="cannot be written"):
        write_text("nosuchprotocol://a/b", "")
    with pytest.raises(InputError, match="cannot be listed"):
        file_sizes("nosuchprotocol://a/b")


def test_stamps_tell_versions_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    assert file_stamp(str(path)) is None and file_stamp("nosuchprotocol://a") is None
    path.write_bytes(b"one")
    first, folder = file_stamp(str(path)), file_stamp(str(tmp_path))
    assert first is not None and first == file_stamp(str(path)) and folder is not None
    path.write_bytes(b"longer")
    assert first != file_stamp(str(path)) and folder != file_stamp(str(tmp_path))
    with fsspec.open("memory://test_stamps/a", "wb") as file:
        file.write(b"one")  # pyright: ignore[reportAttributeAccessIssue]
    assert file_stamp("memory://test_stamps/a") is not None


def test_attempts_come_to_an_end(tmp_path: Path) -> None:
    attempts = Attempts(str(tmp_path), 2)
    attempts.begin("a")
    attempts.begin("a")
    attempts.begin("b")
    with pytest.raises(InputError, match="died 2 times"):
        attempts.begin("a")
    Attempts(str(tmp_path), 2).begin("a")  # another run counts anew
    attempts.remove()
    assert [len(list(run.iterdir())) for run in tmp_path.iterdir()] == [1]


def test_failures_are_one_line() -> None:
    assert failure(InputError("a: no such file; check the path")) == "a: no such file; check the path"
    assert failure(RuntimeError("two\nlines")) == "RuntimeError: two lines"


def test_a_cluster_of_its_own_asks_for_a_token_and_writes_none(tmp_path: Path) -> None:
    script = """
import json, os
from ray_jobs.session import connect
connect()
import ray
from ray._raylet import AuthenticationMode, get_authentication_mode
connect()
print(json.dumps([get_authentication_mode() == AuthenticationMode.TOKEN, len(os.environ["RAY_AUTH_TOKEN"])]))
ray.shutdown()
"""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [True, 64]
    assert not (tmp_path / ".ray").exists()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_mistake_is_one_line_and_exit_code_two(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib

    module = importlib.import_module(f"ray_jobs.{name}")
    config = tmp_path / "job.yaml"
    config.write_text("no_such_key: 1\n")
    argv = sys.argv
    sys.argv = ["job", "--config", str(config)]
    try:
        with pytest.raises(SystemExit) as end:
            module.main()
    finally:
        sys.argv = argv
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("p2e: ") and error.count("\n") == 1 and str(config) in error
