"""Preparing a library on a cluster: the plain command's bytes, bad LoRAs as rows, and no work done twice."""

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from local_ray import local_ray, start_job, wait_until
from tiny import tiny_lora

from p2e.bases import get_base
from p2e.errors import ConfigError, InputError
from p2e.lora.formats import write_lora
from p2e.lora.library import Manifest, PreparedLibrary, prepare_library
from p2e.lora.prepared import Targets
from ray_jobs.prepare import PrepareReport, prepare
from ray_jobs.prepare_passes import PrepareJob

BASE = get_base("world")
RANK = 3


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with local_ray() as address:
        yield address


def write_effect(folder: Path, name: str, seed: int, rank: int = 2, module: str = "self_attn.") -> None:
    lora = tiny_lora(BASE, rank=rank, seed=seed, covers=lambda found: found.startswith(module))
    write_lora(folder / f"loras/{name}.safetensors", lora, BASE, dtype=torch.float32)


def write_library(folder: Path, *names: str, **changes: dict[str, object]) -> Path:
    """A manifest with a LoRA for each name; ranks and sites differ, and the last is held out."""
    entries = []
    for seed, name in enumerate(names):
        write_effect(
            folder, name, seed, rank=2 + seed % 3, module=("self_attn.", "self_attn.q", "self_attn.v")[seed % 3]
        )
        entry: dict[str, object] = {"effect": name, "prompts": [f"it is {name}"], "lora": f"loras/{name}.safetensors"}
        entries.append(entry | {"split": "heldout" if seed == len(names) - 1 else "train"} | changes.get(name, {}))
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump({"base": "world", "entries": entries}))
    return path


def job(manifest: Path, output: object, **changes: object) -> PrepareJob:
    return PrepareJob.parse({"manifest": str(manifest), "output": str(output), "rank": RANK, **changes})


def assert_same_library(one: Path, other: Path) -> None:
    """Index and records are the same to the byte."""
    files = [{path.relative_to(root): path.read_bytes() for path in root.rglob("sites/*")} for root in (one, other)]
    assert files[0] and files[0] == files[1]
    assert (one / "index.json").read_bytes() == (other / "index.json").read_bytes()


def statuses(report: PrepareReport) -> dict[str, str]:
    return {row.effect: row.status for row in report.effects}


@pytest.mark.parametrize("targets", ["canonical", "raw"])
def test_the_same_bytes_as_without_a_cluster(cluster: str, tmp_path: Path, targets: Targets) -> None:
    there = f"file://{tmp_path}/loras/b.safetensors"
    manifest = write_library(tmp_path, "a", "b", "c", "d", b={"lora": there})
    rank = 4 if targets == "raw" else RANK
    plain = prepare_library(Manifest.load(manifest), tmp_path / "plain", base=BASE, rank=rank, targets=targets)
    asked = job(manifest, f"file://{tmp_path}/ray", targets=targets, rank=rank, sites_per_task=5)
    report = prepare(asked)
    assert_same_library(tmp_path / "plain", tmp_path / "ray")
    PreparedLibrary.open(tmp_path / "ray").verify()
    assert report.library == plain.hash
    assert report.sites_made == len(plain.keys) == 32 and set(statuses(report).values()) == {"made"}
    assert not (tmp_path / "ray.work").exists()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "ray").rglob("*")}
    again = prepare(asked)
    assert set(statuses(again).values()) == {"kept"} and (again.sites_made, again.sites_kept) == (0, 32)
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "ray").rglob("*")}


def spoil(folder: Path) -> dict[str, str]:
    """Makes the LoRAs of these effects unusable, each in its way -> effect: what the report must say."""
    loras = folder / "loras"
    whole = (loras / "short.safetensors").read_bytes()
    (loras / "short.safetensors").write_bytes(whole[: len(whole) // 2])
    (loras / "pickle.safetensors").write_bytes(b"\x80\x02}q\x00." + bytes(64))
    (loras / "gone.safetensors").unlink()
    lora = tiny_lora(BASE, covers=lambda module: module == "self_attn.q")
    next(iter(lora.factors.values())).a[0, 0] = float("nan")
    factors = next(iter(lora.factors.items()))
    header = {
        f"diffusion_model.{factors[0]}.lora_{side}.weight": tensor
        for side, tensor in zip("AB", factors[1], strict=True)
    }
    write_raw(loras / "nan.safetensors", header)
    return {"short": "truncated", "pickle": "pickle", "gone": "no such file", "nan": "NaN"}


def write_raw(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A safetensors file with nothing checked."""
    head, data = {}, b""
    for name, tensor in tensors.items():
        piece = tensor.contiguous().numpy().tobytes()
        head[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(piece)]}
        data += piece
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_bad_loras_are_rows_of_the_report(cluster: str, tmp_path: Path) -> None:
    manifest = write_library(tmp_path, "one", "short", "pickle", "gone", "nan", "two", "last")
    bad = spoil(tmp_path)
    report = prepare(job(manifest, tmp_path / "ray"))
    assert {effect for effect, status in statuses(report).items() if status == "left out"} == set(bad)
    for row in report.effects:
        assert "\n" not in row.error and bad.get(row.effect, "") in row.error
        assert (row.norm > 0) is (row.effect not in bad)
    assert PrepareReport.load(tmp_path / "ray/report.json") == report
    good = Manifest.load(manifest)
    entries = tuple(entry for entry in good.entries if entry.effect not in bad)
    good = good.model_copy(update={"entries": entries})
    plain = tmp_path / "plain"
    prepare_library(good, plain, base=BASE, rank=RANK)
    assert_same_library(plain, tmp_path / "ray")

    # Once they are mended, only they are read.
    for seed, name in enumerate(bad):
        write_effect(tmp_path, name, 10 + seed)
    mended = prepare(job(manifest, tmp_path / "ray"))
    assert {effect for effect, status in statuses(mended).items() if status == "made"} == set(bad)
    whole = prepare_library(Manifest.load(manifest), tmp_path / "whole", base=BASE, rank=RANK)
    assert_same_library(tmp_path / "whole", tmp_path / "ray")
    assert mended.library == whole.hash and not (tmp_path / "ray.work").exists()


def test_a_killed_driver_goes_on(cluster: str, tmp_path: Path) -> None:
    names = ["a", "b", "c", "d", "slow"]
    manifest = write_library(tmp_path, *names)
    slow = tmp_path / "loras/slow.safetensors"
    whole = slow.read_bytes()
    slow.unlink()
    os.mkfifo(slow)  # whoever reads it waits for ever
    output, shards = tmp_path / "ray", tmp_path / "ray.work/effects"
    driver = start_job(cluster, "ray_jobs.prepare", "--manifest", manifest, "--output", output, "--rank", RANK)
    try:
        wait_until(lambda: len(list(shards.glob("*.safetensors"))) == 4, "four shards")
        assert driver.poll() is None
    finally:
        driver.kill()
        driver.communicate()
    written = {path: path.stat().st_mtime_ns for path in shards.glob("*.safetensors")}
    assert len(written) == 4 and not (output / "index.json").exists()
    slow.unlink()
    slow.write_bytes(whole)
    report = prepare(job(manifest, output, keep_work=True))
    assert statuses(report) == {**dict.fromkeys(names[:4], "kept"), "slow": "made"}
    assert written.items() <= {path: path.stat().st_mtime_ns for path in shards.glob("*.safetensors")}.items()
    prepare_library(Manifest.load(manifest), tmp_path / "plain", base=BASE, rank=RANK)
    assert_same_library(tmp_path / "plain", output)

    # Killed among the records: those that are whole stay, a truncated one and a missing one are made again.
    (output / "index.json").unlink()
    records = sorted((output / "sites").iterdir())
    records[0].write_bytes(records[0].read_bytes()[:-9])
    records[1].unlink()
    again = prepare(job(manifest, output, keep_work=True))
    assert (again.sites_made, again.sites_kept) == (2, len(records) - 2)
    assert set(statuses(again).values()) == {"kept"}
    assert_same_library(tmp_path / "plain", output)

    # Another rank in the same place: asked for, and then with nothing of the old records.
    with pytest.raises(InputError, match="replace: true"):
        prepare(job(manifest, output, rank=RANK + 1))
    prepare(job(manifest, output, rank=RANK + 1, replace=True))
    prepare_library(Manifest.load(manifest), tmp_path / "plain", base=BASE, rank=RANK + 1)
    assert_same_library(tmp_path / "plain", output)


def test_mistakes_are_said_in_one_line(cluster: str, tmp_path: Path) -> None:
    manifest = write_library(tmp_path, "a", "b")

    def refused(says: str, **changes: object) -> None:
        with pytest.raises(InputError, match=says) as error:
            prepare(job(manifest, tmp_path / "out", **changes))
        assert "\n" not in str(error.value)

    refused("99 CPUs", cpus=99)
    refused("1 GPUs", gpus=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="no prepared library"):
        prepare(job(manifest, tmp_path / "mine"))
    with pytest.raises(ConfigError, match="no_such"):
        job(manifest, tmp_path / "out", no_such=1)
    (tmp_path / "loras/a.safetensors").unlink()
    refused("no training effect is left.* a: .*no such file")
    assert not (tmp_path / "out/index.json").exists()
