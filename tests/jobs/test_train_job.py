"""Training on a real Ray cluster: the same losses as one process, and the same end after every fault."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.cluster_utils import Cluster
from ray.train.torch import TorchConfig, TorchTrainer
from tiny_inputs import FullDisk, train_stages
from tiny_job import SampleFile, TinyJob, when

from p2e.errors import ConfigError, InputError
from p2e.files import SafetensorsFile
from p2e.hypernet.checkpoint import load_checkpoint
from ray_jobs.training.checkpoints import damage
from ray_jobs.training.job import train

GOLDEN = Path(__file__).parent / "golden_job_losses.txt"
# Sums in another order move a loss near 1 by some 1e-7; AdamW lets that grow a little with the steps.
TOLERANCE = 1e-5
DRIVER = """
import pickle, sys
from ray_jobs.training.job import train
job, opened = pickle.load(open(sys.argv[1], "rb"))
train(job, opened=opened)
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return TinyJob(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head and one more node, which is there from the start: Ray Train learns of new ones every 20 s only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        # Ray Train may count on a node that has just gone; it thinks again after this long, else after a minute.
        patch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        head = {"num_cpus": 3, "object_store_memory": 150 << 20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.add_node(num_cpus=2, object_store_memory=100 << 20)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def golden() -> list[float]:
    return [float(line) for line in GOLDEN.read_text().split()]


@pytest.fixture(scope="module")
def planned(tiny: TinyJob) -> dict[int, list[list[int]]]:
    """The rows of every step, as one process takes them."""
    trainer = tiny.tiny.trainer("planned", **tiny.settings)
    parts = trainer.config.micro_batches
    return {s: trainer.sampler.plan(s * parts, parts).tolist() for s in range(trainer.config.steps)}


def reached(tiny: TinyJob, output: str, step: int, rank: int = 0) -> SampleFile | None:
    """The log of a worker of the first attempt, once it has begun a step."""
    files = [file for attempt in tiny.logs(output)[:1] for file in attempt if file.rank == rank]
    return files[0] if files and any(line["step"] >= step for line in files[0].lines()) else None


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)


def check_end(tiny: TinyJob, output: str, golden: list[float], planned: dict[int, list[list[int]]]) -> None:
    """The run ended as an undisturbed one does: every loss, every sample, and a checkpoint that can be read."""
    assert tiny.samples(output) == planned
    assert tiny.losses(output) == pytest.approx(golden, rel=TOLERANCE)
    assert load_checkpoint(tiny.folder / output, base=tiny.tiny.base).settings["training"]["steps"] == len(golden)


def test_one_process_has_the_golden_losses(tiny: TinyJob, golden: list[float]) -> None:
    """After a wanted change of the numerics, write the losses of this run into the file, one a line."""
    trainer = tiny.tiny.trainer("process", **tiny.settings)
    trainer.run()
    assert [entry["loss"] for entry in trainer.history] == pytest.approx(golden, rel=TOLERANCE)


def test_one_worker_ends_as_one_process(
    tiny: TinyJob, cluster: Cluster, golden: list[float], planned: dict[int, list[list[int]]]
) -> None:
    train(tiny.job("one"), opened=tiny.opened)
    check_end(tiny, "one", golden, planned)
    trainer = tiny.tiny.trainer("process-end", **tiny.settings)
    trainer.run()
    with (
        SafetensorsFile(tiny.folder / "one" / "model.safetensors") as ours,
        SafetensorsFile(tiny.folder / "process-end" / "model.safetensors") as known,
    ):
        assert ours.specs.keys() == known.specs.keys()
        assert max(float((ours.read(n) - known.read(n)).abs().max()) for n in known.specs) < 1e-6
    kept = sorted((tiny.folder / "one").glob("checkpoint_2*"))
    assert len(kept) == 3 and all(damage(folder) is None for folder in kept)


def resident(yes: bool) -> dict[str, Any]:
    """Settings of the run: base and library stay in memory, or are streamed."""
    return {"resident_gb": 1 if yes else 0}


@pytest.mark.parametrize("workers", [1, 2])
def test_every_stage_has_the_golden_losses(
    tiny: TinyJob, cluster: Cluster, golden: list[float], planned: dict[int, list[list[int]]], workers: int
) -> None:
    names = {stage: f"stage{stage}-{workers}" for stage in (1, 2, 3)}
    bf16, bf16_zero = f"bf16-{workers}", {"stage": 2, "parameters": "bfloat16"}
    jobs = [
        # One stream is cut in windows; the others would take as long and show no more.
        tiny.job(name, workers=workers, zero={"stage": stage}, stream={"window": 3}, train=resident(stage > 1))
        for stage, name in names.items()
    ]
    jobs.append(tiny.job(bf16, workers=workers, zero=bf16_zero, train={"precision": "bfloat16"} | resident(True)))
    trainer = TorchTrainer(
        train_stages,
        train_loop_config={"jobs": [job.model_dump(mode="json") for job in jobs], "opened": tiny.opened},
        scaling_config=ray.train.ScalingConfig(num_workers=workers),
        torch_config=TorchConfig(backend="gloo"),
        run_config=ray.train.RunConfig(name=f"stages-{workers}", storage_path=str(tiny.folder)),
    )
    trainer.fit()
    for name in names.values():
        assert tiny.losses(name) == pytest.approx(golden, rel=TOLERANCE)
        assert tiny.samples(name) == planned
    assert tiny.losses(bf16) == pytest.approx(golden, rel=1e-2)
    assert tiny.losses(bf16) != pytest.approx(golden, rel=TOLERANCE)  # it is another arithmetic
    assert tiny.samples(bf16) == planned


def test_a_worker_killed_in_mid_epoch(
    tiny: TinyJob, cluster: Cluster, golden: list[float], planned: dict[int, list[list[int]]]
) -> None:
    def act() -> None:
        file = reached(tiny, "killed", 3, rank=1)
        assert file is not None
        kill(file.process)

    with when(lambda: reached(tiny, "killed", 3, rank=1) is not None, act):
        train(tiny.job("killed", workers=2, zero={"stage": 3}), opened=tiny.opened)
    assert len(tiny.logs("killed")) == 2
    check_end(tiny, "killed", golden, planned)


def newest(folder: Path) -> Path:
    """The newest whole checkpoint of a run."""
    whole = [path for path in folder.glob("checkpoint_2*") if (path / "checkpoint.json").exists()]
    return max(whole, key=lambda path: json.loads((path / "checkpoint.json").read_text())["step"])


def test_a_killed_driver_is_submitted_again_with_more_workers_and_the_newest_checkpoint_is_truncated(
    tiny: TinyJob, cluster: Cluster, golden: list[float], planned: dict[int, list[list[int]]]
) -> None:
    job = tiny.job("driver")
    package = tiny.folder / "driver.pickle"
    package.write_bytes(pickle.dumps((job, tiny.opened)))
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(package)], env={**os.environ, "RAY_ADDRESS": str(cluster.address)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with when(lambda: reached(tiny, "driver", 6) is not None, driver.kill):
        driver.wait()
    wait_for_end(tiny, "driver")
    broken = newest(tiny.folder / "driver")
    shard = max((broken / "zero").iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(shard, shard.stat().st_size // 2)
    fault, step = damage(broken), json.loads((broken / "checkpoint.json").read_text())["step"]
    assert fault is not None and "bytes instead of" in fault
    folders = [path for path in (tiny.folder / "driver").glob("checkpoint_2*") if path != broken]
    for lost in sorted(folders)[:1]:  # the list of checkpoints still names it
        shutil.rmtree(lost)
    train(tiny.job("driver", workers=2), opened=tiny.opened)
    assert [len(attempt) for attempt in tiny.logs("driver")] == [1, 2]
    assert tiny.logs("driver")[1][0].start < step
    check_end(tiny, "driver", golden, planned)


def wait_for_end(tiny: TinyJob, output: str) -> None:
    """Until the workers of a killed driver are gone."""
    deadline = time.monotonic() + 60
    for file in [file for attempt in tiny.logs(output) for file in attempt]:
        while Path(f"/proc/{file.process}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not Path(f"/proc/{file.process}").exists()


def test_a_full_disk(tiny: TinyJob, cluster: Cluster, golden: list[float], planned: dict[int, list[list[int]]]) -> None:
    """First the controller cannot write its list of checkpoints, then a worker cannot write a checkpoint."""
    full, felt_list, felt_rest = (tiny.folder / name for name in ("full", "felt-list", "felt-rest"))
    full.write_text("list")
    storage = PyFileSystem(FSSpecHandler(FullDisk(folder=str(tiny.folder))))
    with (
        when(felt_list.exists, full.unlink),
        when(lambda: len(tiny.logs("disk")) > 1, lambda: full.write_text("rest")),
        when(felt_rest.exists, full.unlink),
    ):
        train(tiny.job("disk", max_failures=8, train=resident(True)), opened=tiny.opened, storage_filesystem=storage)
    assert len(tiny.logs("disk")) > 2
    check_end(tiny, "disk", golden, planned)


def test_a_lost_node_leaves_fewer_workers_and_the_same_batch(
    tiny: TinyJob, cluster: Cluster, golden: list[float], planned: dict[int, list[list[int]]]
) -> None:
    (node,) = cluster.worker_nodes
    with when(lambda: reached(tiny, "node", 3, rank=1) is not None, lambda: cluster.remove_node(node)):
        train(tiny.job("node", workers=(1, 2), cpus=2, zero={"stage": 3}), opened=tiny.opened)
    assert [len(attempt) for attempt in tiny.logs("node")] == [2, 1]
    check_end(tiny, "node", golden, planned)


def test_mistakes_are_not_tried_again(tiny: TinyJob, cluster: Cluster) -> None:
    """Of a run that may fail without limit, too: what every worker finds wrong stays wrong."""
    changed = tiny.job("one", train={"clip": 0.5}, max_failures=-1)
    with pytest.raises(ConfigError, match="a run with another clip") as error:
        train(changed, opened=tiny.opened)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"100 x 1 CPUs and 0 GPUs, the machines have .*3 CPUs"):
        train(tiny.job("many", workers=100, train={"micro_batches": 100}), opened=tiny.opened)
