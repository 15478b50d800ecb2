"""The two passes of preparing a library on a cluster, each a stream of tasks: LoRA by LoRA, then site by site."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import ray
import ray.data
import torch
from pydantic import Field

from p2e.adapt.cache import digest_of
from p2e.bases.base import Base
from p2e.config import Settings
from p2e.errors import OutputError, P2EError
from p2e.files import file_sizes, read_text, write_text
from p2e.lora.manifest import Manifest
from p2e.lora.prepare import write_site
from p2e.lora.prepared import SITES, SiteIndex, Targets
from p2e.lora.shards import Shard, collect_sites, read_shard, write_shard
from ray_jobs.attempts import Attempts
from ray_jobs.session import failure, remove, stream

__all__ = ["RUN", "EffectRow", "Plan", "PrepareJob", "make_records", "make_shards"]

RUN = "run.txt"  # beside the records: the digest of the run that they are of


class PrepareJob(Settings):
    """Settings of the job.

    Attributes:
        manifest: YAML, JSON or JSONL file, local or an fsspec URL, or "world".
        output: folder of the prepared library, local or an fsspec URL; all machines must see it.
        rank: rank of every target, by padding or truncation.
        targets: "canonical" factors, or those of the files as they are.
        base: base model by name or folder, where the manifest names one that p2e has no table of.
        work: folder for shards; `output`.work if None. Several preparations may share one.
        keep_work: leave it, so that the next preparation reads only the LoRAs that are new.
        replace: an `output` that holds another library is made anew; else that is an error. One that this job wrote
            with LoRAs left out is made whole without being asked.
        cpus, gpus: of a task; with GPUs, or a share of one, the decompositions run there.
        parallel: tasks at a time; None is as many as the cluster has room for.
        sites_per_task: records that a task of the second pass makes, and holds, at a time.
        attempts: how often a LoRA may kill its worker.
    """

    manifest: str
    output: str
    rank: int = Field(ge=1)
    targets: Targets = "canonical"
    base: str | None = None
    work: str | None = None
    keep_work: bool = False
    replace: bool = False
    cpus: float = Field(default=1.0, gt=0)
    gpus: float = Field(default=0.0, ge=0)
    parallel: int | None = Field(default=None, ge=1)
    sites_per_task: int = Field(default=8, ge=1)
    attempts: int = Field(default=3, ge=1)


class EffectRow(Settings):
    """What became of one effect: "made" now, "kept" from a run before, or "left out" for the reason in `error`."""

    effect: str
    split: str
    status: Literal["made", "kept", "left out"]
    error: str = ""
    norm: float = 0.0
    lost: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What every task of a run knows."""

    job: PrepareJob
    manifest: Manifest
    base: Base
    digests: tuple[str, ...]
    work: str
    device: str

    def shard(self, effect: int) -> str:
        return f"{self.work}/effects/{self.digests[effect]}.safetensors"

    def attempts(self) -> Attempts:
        return Attempts(f"{self.work}/attempts", self.job.attempts)

    @property
    def run(self) -> str:
        """Digest of all that the library depends on."""
        return digest_of(self.manifest.hash, *self.digests, self.job.rank, self.job.targets)


def make_shards(plan: Plan) -> tuple[list[EffectRow], list[Shard | None]]:
    """The first pass: a row and a shard for each effect, None where it is left out."""
    entries = plan.manifest.entries
    there = file_sizes(f"{plan.work}/effects")
    shards = [
        read_shard(plan.shard(i), digest) if f"{digest}.safetensors" in there else None
        for i, digest in enumerate(plan.digests)
    ]
    kept = [shard is not None for shard in shards]
    attempts = plan.attempts()
    missing = [{"index": i} for i, known in enumerate(kept) if not known]
    done: dict[int, dict[str, Any]] = {}
    for row in stream(missing, partial(_make_shard, plan=plan, attempts=attempts), **_options(plan.job)):
        index = int(row["index"])
        done[index] = row
        if not row["error"]:
            shards[index] = read_shard(plan.shard(index), plan.digests[index])
    attempts.remove()
    rows = []
    for i, (entry, shard) in enumerate(zip(entries, shards, strict=True)):
        row = done.get(i, {"error": "", "seconds": 0.0})
        if shard is None:
            error = row["error"] or "its shard cannot be read again; check the storage of the work folder"
            rows.append(EffectRow(effect=entry.effect, split=entry.split, status="left out", error=error))
            continue
        line = shard.energy.index(entry)
        found = {"norm": line.norm, "lost": line.lost, "seconds": row["seconds"]}
        status = "kept" if kept[i] else "made"
        rows.append(EffectRow(effect=entry.effect, split=entry.split, status=status, **found))
    return rows, shards


def _make_shard(row: dict[str, Any], *, plan: Plan, attempts: Attempts) -> dict[str, Any]:
    """A task of the first pass: one LoRA. Whatever is wrong with it is told, not raised."""
    index, job, start = row["index"], plan.job, time.monotonic()
    error = ""
    try:
        attempts.begin(plan.digests[index])
        write_shard(
            plan.shard(index), plan.manifest, plan.manifest.entries[index], plan.base, job.rank, job.targets,
            digest=plan.digests[index], device=plan.device,
        )  # fmt: skip
    except Exception as problem:  # file systems and decompositions have errors of their own; one LoRA is not the job
        error = failure(problem)
    return {"index": index, "error": error, "seconds": time.monotonic() - start}


def make_records(plan: Plan, output: str, shards: Sequence[Shard]) -> tuple[list[SiteIndex], int]:
    """The second pass: the index of each covered site, in the base's order, and how many were made by this run."""
    covered = [site for site in plan.base.sites if any(site.key in shard.keys for shard in shards)]
    if RUN not in file_sizes(output) or read_text(f"{output}/{RUN}") != plan.run:
        remove(f"{output}/{SITES}")  # records of another run
        write_text(f"{output}/{RUN}", plan.run)
    notes, records = f"{plan.work}/sites/{plan.run}", file_sizes(f"{output}/{SITES}")
    found: dict[str, SiteIndex] = {}
    noted = file_sizes(notes)
    for site in covered:
        if f"{site.key}.json" in noted:
            known = SiteIndex.load(f"{notes}/{site.key}.json")
            if records.get(f"{site.key}.safetensors") == known.bytes:
                found[site.key] = known
    missing = [site.key for site in covered if site.key not in found]
    size = plan.job.sites_per_task
    rows = [{"keys": missing[start : start + size]} for start in range(0, len(missing), size)]
    attempts = plan.attempts()
    known = ray.put(list(shards))
    task = partial(_make_sites, plan=plan, output=output, notes=notes, shards=known, attempts=attempts)
    for row in stream(rows, task, **_options(plan.job)):
        if row["error"]:
            raise OutputError(row["error"])
        for text in row["sites"]:
            site = SiteIndex.parse(json.loads(text))
            found[site.key] = site
    attempts.remove()
    return [found[site.key] for site in covered], len(missing)


def _make_sites(
    row: dict[str, Any], *, plan: Plan, output: str, notes: str, shards: Any, attempts: Attempts
) -> dict[str, Any]:
    """A task of the second pass: the records of a few sites, each noted when it is written."""
    sites = [plan.base.by_key[key] for key in row["keys"]]
    train = torch.tensor([entry.split == "train" for entry in plan.manifest.entries])
    made = []
    try:
        attempts.begin(sites[0].key)
        records = collect_sites(sites, ray.get(shards), plan.job.rank)
        for site in sites:
            line = write_site(f"{output}/{SITES}", site, *records.pop(0), train=train, targets=plan.job.targets)
            made.append(line.to_json())
            write_text(f"{notes}/{site.key}.json", made[-1])
    except P2EError as error:
        return {"sites": [], "error": failure(error)}
    return {"sites": made, "error": ""}


def _options(job: PrepareJob) -> dict[str, Any]:
    compute = ray.data.TaskPoolStrategy(size=job.parallel) if job.parallel else None
    return {"num_cpus": job.cpus, "num_gpus": job.gpus or None, "compute": compute}
