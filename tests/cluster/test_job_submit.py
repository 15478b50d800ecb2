"""`ray job submit` to a real head that wants a token: jobs from the working directory run, nobody else gets in."""

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from cluster_files import ROOT, manifests
from local_head import Head, local_head, processes_under, status

from p2e.hypernet.checkpoint import load_checkpoint
from p2e.lora.manifest import Manifest
from ray_jobs.train import load

EFFECTS = 3
# The documented command's configuration, but for a moment's work.
TOY = {
    "workers": 1, "train.steps": 2, "train.log_every": 1, "train.evaluate_every": 0, "train.hypernet.width": 48,
    "train.hypernet.layers": 1, "train.hypernet.heads": 2, "train.hypernet.latents": 4, "train.sites_per_step": 4,
    "train.effects_per_step": 2, "train.hypernet.text.anchors": EFFECTS,
}  # fmt: skip

# A job as ours are: a driver that calls Ray bare, and a task that imports a module of the working directory.
SCRIPT = """
import ray
from helper import square

ray.init()
print("squares", ray.get([ray.remote(square).remote(n) for n in range(4)]))
"""

# What a job of this project sees on a node: ray_jobs from the upload, p2e from where it is installed, with its weights.
LOOK = """
from pathlib import Path
import p2e
weights = list(Path(p2e.__file__).parent.joinpath("world/base").rglob("*.safetensors"))
print("uploaded", Path("ray_jobs/aws/stack.yaml").is_file(), Path("p2e").exists(), "weights", len(weights) > 0)
"""


@dataclass(frozen=True)
class Submitted:
    """The head, and what `ray job submit` said in each case."""

    head: Head
    said: dict[str, "subprocess.CompletedProcess[str]"]
    folder: Path


def few_effects(path: Path) -> Path:
    """A manifest of some of the LoRAs that ship."""
    library = ROOT / "p2e/world/library"
    values = yaml.safe_load((library / "manifest.yaml").read_text())
    chosen = [entry for entry in values["entries"] if entry.get("split", "train") == "train"][:EFFECTS]
    for entry in chosen:
        entry |= {"lora": str(library / entry["lora"]), "prompts": entry["prompts"][:2]}
    path.write_text(yaml.safe_dump(values | {"entries": chosen}))
    return path


@pytest.fixture(scope="module")
def submitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submitted]:
    """One head for this file, given all its jobs at once, since a job mostly waits; nothing of it is left after."""
    folder = tmp_path_factory.mktemp("submitted")
    for name, source in (("job", SCRIPT), ("intruder", f"open({str(folder / 'intruded')!r}, 'w').close()\n")):
        (folder / name).mkdir()
        (folder / name / "job.py").write_text(source)
        (folder / name / "helper.py").write_text("def square(n):\n    return n * n\n")
    changes = TOY | {
        "manifest": few_effects(folder / "few.yaml"),
        "train.library": folder / "prepared",
        "train.output": folder / "run",
    }
    train = ["python", "-m", "ray_jobs.train", "--config", "ray_jobs/configs/world.yaml"]
    train += [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
    wrong = folder / "wrong_token"
    wrong.write_text("0" * 64)
    own, ours = ("--working-dir", str(folder / "job")), ("--working-dir", str(ROOT))
    with local_head() as head, ThreadPoolExecutor() as pool:
        assert processes_under(head.folder)
        cases = {
            "script": pool.submit(head.submit, *own, "--", "python", "job.py"),
            "project": pool.submit(head.submit, *ours, "--", "python", "-c", LOOK),
            "train": pool.submit(head.submit, *ours, "--", *train, timeout=400),
            "intruder": pool.submit(
                head.submit, "--working-dir", str(folder / "intruder"), "--", "python", "job.py", token_file=wrong
            ),
        }
        yield Submitted(head, {name: case.result() for name, case in cases.items()}, folder)
    assert not processes_under(head.folder) and not head.folder.exists()


def test_a_job_runs_from_its_working_directory(submitted: Submitted) -> None:
    done = submitted.said["script"]
    assert done.returncode == 0, done.stdout
    assert "squares [0, 1, 4, 9]" in done.stdout and "succeeded" in done.stdout


def test_the_project_is_submitted_without_its_weights(submitted: Submitted) -> None:
    done = submitted.said["project"]
    assert done.returncode == 0, done.stdout
    assert "uploaded True False weights True" in done.stdout


def test_the_worlds_hypernetwork_is_trained_from_what_ships(submitted: Submitted) -> None:
    done = submitted.said["train"]
    assert done.returncode == 0, done.stdout
    trained = load_checkpoint(submitted.folder / "run")
    assert trained.settings["training"]["steps"] == 2 and trained.settings["base"] == "world"


def test_the_worlds_configuration_fits_the_library_that_ships() -> None:
    job = load(str(ROOT / "ray_jobs/configs/world.yaml"), [])
    assert job.manifest == job.train.base == "world"
    shipped = Manifest.load(ROOT / "p2e/world/library/manifest.yaml")
    assert job.train.hypernet.text.anchors == sum(entry.split == "train" for entry in shipped.entries)


def test_a_wrong_token_is_refused(submitted: Submitted) -> None:
    done = submitted.said["intruder"]
    assert done.returncode != 0 and "Invalid authentication token" in done.stdout, done.stdout
    assert "submitted successfully" not in done.stdout and not (submitted.folder / "intruded").exists()


def test_only_health_checks_answer_without_a_token(submitted: Submitted) -> None:
    head = submitted.head
    jobs, token = f"{head.address}/api/jobs/", head.token_file.read_text()
    assert (status(jobs), status(jobs, "0" * 64), status(jobs, token)) == (401, 403, 200)
    # The probes of the manifests, which have no token.
    paths = set()
    for item in manifests():
        if item["kind"] == "RayCluster":
            (container,) = item["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
            paths = {container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")}
    assert paths and {status(f"{head.agent}{path}") for path in paths} == {200}
