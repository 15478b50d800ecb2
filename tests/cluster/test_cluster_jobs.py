"""Every job that a document or a manifest names exists with a valid configuration, and all speak of one cluster."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_files import LAUNCHER, ROOT, launcher_config, manifests

from p2e.config import Settings
from ray_jobs.evaluate import EvaluateJob
from ray_jobs.library import LibraryJob
from ray_jobs.prepare_passes import PrepareJob
from ray_jobs.render import RenderJob
from ray_jobs.train import load
from ray_jobs.training.config import TrainJob
from ray_jobs.training.engine import deepspeed_settings
from ray_jobs.training.stream import Slots

LOADERS: dict[str, Callable[[str], Settings]] = {
    "train": lambda file: load(file, []),
    "prepare": PrepareJob.load,
    "library": LibraryJob.load,
    "render": RenderJob.load,
    "evaluate": EvaluateJob.load,
}
JOB = re.compile(r"python -m ray_jobs\.(\w+)(?: --config (\S+))?")


def documents() -> list[Path]:
    found = [*ROOT.glob("*.md"), LAUNCHER, *(ROOT / "ray_jobs").rglob("*")]
    return [path for path in found if path.suffix in {".md", ".yaml", ".py"} or path.name == "Dockerfile"]


def jobs() -> set[tuple[str, str, str]]:
    """(document, module, configuration) of every command that is written down; "" where none is named."""
    return {
        (path.name, module, file.rstrip("`.,;"))
        for path in documents()
        for module, file in JOB.findall(path.read_text())
    }


def test_every_documented_job_exists_and_its_configuration_is_valid() -> None:
    found = jobs()
    for document, module, file in found:
        assert module in LOADERS and (ROOT / f"ray_jobs/{module}.py").is_file(), f"{document}: ray_jobs.{module}"
        if file and file not in {"FILE", "{config}"}:
            LOADERS[module](str(ROOT / file.removeprefix("/p2e/")))
    named = {(document, file.removeprefix("/p2e/")) for document, _, file in found}
    folder = "ray_jobs/configs"
    assert {
        ("README.md", f"{folder}/world.yaml"),
        ("README.md", f"{folder}/prepare_wan14b.yaml"),
        ("README.md", f"{folder}/paper_wan14b.yaml"),
        ("prepare.yaml", f"{folder}/prepare_wan14b.yaml"),
        ("train.yaml", f"{folder}/paper_wan14b.yaml"),
    } <= named
    for file in (ROOT / folder).glob("*.yaml"):  # none that nobody shows how to use
        assert any(path == f"{folder}/{file.name}" for _, path in named), file.name


@pytest.fixture
def paper() -> TrainJob:
    return load(str(ROOT / "ray_jobs/configs/paper_wan14b.yaml"), [])


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    return [value] if isinstance(value, str) else []


def test_paths_of_the_paper_are_mounted_on_every_node(paper: TrainJob) -> None:
    prepare = PrepareJob.load(ROOT / "ray_jobs/configs/prepare_wan14b.yaml")
    assert (paper.train.library, paper.train.hypernet.rank) == (prepare.output, prepare.rank)
    paths = [text for text in strings(paper.model_dump()) + strings(prepare.model_dump()) if "/" in text]
    assert len(paths) >= 6
    mounts = {"/shared", "/scratch"}
    assert {f"/{path.split('/')[1]}" for path in paths} == mounts
    assert {path for path in paths if not path.startswith("/shared/")} == {"/scratch"}  # what one node alone may hold
    made = "\n".join(launcher_config()["initialization_commands"])
    assert all(re.search(rf"mkdir -p .*{mount}\b", made) for mount in mounts)
    for item in manifests():
        spec = item.get("spec", {})
        for group in spec.get("rayClusterSpec", spec).get("workerGroupSpecs", []):
            (container,) = group["template"]["spec"]["containers"]
            assert mounts <= {mount["mountPath"] for mount in container["volumeMounts"]}
    readme = (ROOT / "README.md").read_text()
    assert f"--local-dir {paper.train.base}" in readme and f"{paper.train.output} " in readme
    assert str(Path(prepare.manifest).parent) + "/" in readme


def test_the_paper_fills_the_cluster(paper: TrainJob) -> None:
    node = launcher_config()["available_node_types"]["a100"]
    assert paper.gpus is True and paper.most_workers == node["max_workers"] * node["resources"]["GPU"]
    assert paper.train.micro_batches % paper.least_workers == paper.train.micro_batches % paper.most_workers == 0
    (job,) = [item for item in manifests() if item["metadata"]["name"] == "p2e-train"]
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    reading = min(node["resources"]["CPU"], int(limits["cpu"])) - paper.cpus * limits["nvidia.com/gpu"]
    assert reading >= 8 * paper.stream.cpus  # at least one reader a worker


def test_nothing_asks_for_a_compiler_of_cuda(paper: TrainJob) -> None:
    """The nodes have no nvcc: DeepSpeed takes the optimizer of torch, and builds none of its own."""
    settings = deepspeed_settings(paper.zero, paper.train, Slots(32, 32), True, False)
    assert "optimizer" not in settings and "offload_optimizer" not in settings["zero_optimization"]
    assert yaml.safe_load(yaml.safe_dump(settings)) == settings


def test_the_papers_settings(paper: TrainJob) -> None:
    train = paper.train
    assert train.micro_batches * train.sites_per_step * train.effects_per_step == 640
    assert train.steps == 4000 * 50 * 480 / 640
    assert (train.learning_rate, train.decay, train.warmup_fraction, train.clip) == (5e-5, "constant", 1e-4, 1.0)
    assert (train.weight_decay, train.precision) == (0.01, "bfloat16")
    network = train.hypernet
    assert (network.width, network.layers, network.heads, network.latents, network.rank) == (2048, 14, 32, 256, 32)
