"""Prepares a library of LoRAs on a Ray cluster: the files that `p2e library prepare` writes, byte for byte.

    python -m ray_jobs.prepare --config ray_jobs/configs/prepare_world.yaml

Two passes of Ray Data. First LoRA by LoRA: each is read, brought to canonical form and written as a shard. Then site by
site: signs and scales need all effects, so a task reads a few sites out of all shards and writes their records. A task
holds one LoRA, or the records of a few sites; tensors go from file to file and never through Ray's object store.

What is done stays done: shards and records are named by all they depend on, and a job that was killed goes on.
"""

import contextlib
import json
from dataclasses import replace

from p2e.config import Settings
from p2e.errors import InputError
from p2e.files import file_sizes, read_text, write_text
from p2e.lora.manifest import Manifest
from p2e.lora.prepare import check_request
from p2e.lora.prepared import INDEX, SITES, Index, PreparedLibrary
from p2e.lora.shards import shard_digest
from ray_jobs.command import run_job
from ray_jobs.prepare_passes import RUN, EffectRow, Plan, PrepareJob, make_records, make_shards
from ray_jobs.session import check_resources, connect, remove

__all__ = ["PrepareReport", "prepare"]

REPORT = "report.json"


class PrepareReport(Settings):
    """What a run did.

    Attributes:
        run: digest of all that the library depends on.
        library: hash of the prepared library.
        sites_made, sites_kept: records written by this run, and by runs before it.
    """

    run: str
    library: str
    effects: tuple[EffectRow, ...]
    sites_made: int
    sites_kept: int


def prepare(job: PrepareJob) -> PrepareReport:
    """Writes the prepared library and `report.json` beside its index.

    Raises:
        InputError: settings or manifest that cannot be used, or no training effect that can be read.
        OutputError: `output` or `work` cannot be written.
    """
    from p2e.bases import get_base, open_base
    from p2e.commands.options import shipped

    manifest = Manifest.load(shipped(job.manifest, "library/manifest.yaml"))
    base = open_base(job.base)[0] if job.base else get_base(manifest.base)
    check_request(manifest, base, job.rank, job.targets)
    output = job.output.rstrip("/")
    digests = tuple(shard_digest(manifest, entry, base, job.rank, job.targets) for entry in manifest.entries)
    work = (job.work or f"{output}.work").rstrip("/")
    plan = Plan(job, manifest, base, digests, work, "cuda" if job.gpus else "cpu")
    if done := _finished(output, plan):
        return done
    connect()
    check_resources(job.cpus, job.gpus)
    rows, shards = make_shards(plan)
    left = [(index, shard) for index, shard in enumerate(shards) if shard is not None]
    if not any(manifest.entries[index].split == "train" for index, _ in left):
        bad = next(row for row in rows if row.status == "left out")
        raise InputError(f"no training effect is left to prepare; the first problem is {bad.effect}: {bad.error}")
    entries = tuple(manifest.entries[index] for index, _ in left)
    kept = replace(
        plan, manifest=manifest.model_copy(update={"entries": entries}), digests=tuple(digests[i] for i, _ in left)
    )
    sites, made = make_records(kept, output, [shard for _, shard in left])
    index = Index(
        base=base.name, rank=job.rank, targets=job.targets, manifest=kept.manifest.hash,
        effects=tuple(shard.energy.index(entry) for entry, (_, shard) in zip(entries, left, strict=True)),
        sites=tuple(sites),
    )  # fmt: skip
    write_text(f"{output}/{INDEX}", index.to_json())
    library = PreparedLibrary.open(output)
    report = PrepareReport(
        run=plan.run, library=library.hash, effects=tuple(rows), sites_made=made, sites_kept=len(sites) - made
    )
    write_text(f"{output}/{REPORT}", report.to_json())
    if not job.keep_work and len(left) == len(rows):
        remove(work)
    return report


def _finished(output: str, plan: Plan) -> PrepareReport | None:
    """The report of a finished run of the same; a library of another run is taken away or refused."""
    if INDEX not in file_sizes(output):
        if not file_sizes(output).keys() <= {SITES, REPORT, RUN}:
            raise InputError(f"{output}: is there already and no prepared library; choose another place")
        return None
    whole = True
    with contextlib.suppress(InputError, ValueError):
        report = PrepareReport.parse(json.loads(read_text(f"{output}/{REPORT}")), f"{output}/{REPORT}")
        whole = all(row.status != "left out" for row in report.effects)
        if whole and report.run == plan.run and PreparedLibrary.open(output).hash == report.library:
            rows = tuple(row.model_copy(update={"status": "kept", "seconds": 0.0}) for row in report.effects)
            return report.model_copy(
                update={"effects": rows, "sites_made": 0, "sites_kept": report.sites_made + report.sites_kept}
            )
    if whole and not plan.job.replace:
        raise InputError(f"{output}: holds another prepared library; choose another place, or set replace: true")
    remove(f"{output}/{INDEX}")  # first: without it nothing takes the folder for a library
    return None


def _run(job: PrepareJob) -> int:
    report = prepare(job)
    out = [row for row in report.effects if row.status == "left out"]
    for row in out:
        print(f"left out {row.effect}: {row.error}")
    print(
        f"wrote {job.output}: {len(report.effects) - len(out)} effects, {len(out)} left out; "
        f"{sum(row.status == 'made' for row in report.effects)} LoRAs and {report.sites_made} records made now"
    )
    return 0


def main() -> None:
    run_job(PrepareJob, _run, "Prepare a library of LoRAs on a Ray cluster.")


if __name__ == "__main__":
    # Under its own name, so that workers import what they are sent instead of unpickling a copy of __main__.
    from ray_jobs import prepare as job

    job.main()
