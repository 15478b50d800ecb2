"""Trains the LoRAs of many effects on a Ray cluster, a task an effect, into a library that can be prepared.

    python -m ray_jobs.library --config ray_jobs/configs/library_world.yaml

Each effect is what `p2e adapt` makes of its clips. One that fails is a row of the report. An effect is trained again
only where its clips, its settings or the base have changed; one that was cut off goes on from its last saved step.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import ray
import yaml
from pydantic import AfterValidator, Field, model_validator
from ray.exceptions import RayError, RayTaskError

from p2e.adapt.cache import content_digest
from p2e.adapt.config import FineTuneConfig
from p2e.config import Settings
from p2e.errors import InputError
from p2e.files import write_text
from p2e.lora.manifest import Entry, Manifest, Split
from p2e.text import check_prompt
from ray_jobs.attempts import Attempts
from ray_jobs.command import run_job
from ray_jobs.effect_task import Record, Work, find_record, train_effect
from ray_jobs.session import check_resources, connect, failure

__all__ = ["EffectRow", "LibraryJob", "LibraryReport", "train_library"]


class EffectClips(Settings):
    """One effect to be learnt.

    Attributes:
        effect: its name, which names its file too.
        clips: folder of NAME.mp4 and NAME.txt, or with a clips.jsonl, as `p2e adapt` takes it.
        prompts, split, weight: as they go into the manifest.
        init: LoRA to begin from; one for each expert of the base.
        adapt: what differs from the job's recipe.
    """

    effect: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")
    clips: str
    prompts: tuple[Annotated[str, AfterValidator(check_prompt)], ...] = Field(min_length=1)
    split: Split = "train"
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    init: tuple[str, ...] = ()
    adapt: FineTuneConfig = FineTuneConfig()


class LibraryJob(Settings):
    """Settings of the job.

    Attributes:
        output: folder of the library, on storage that all machines share: `manifest.yaml`, `report.json`, `loras`.
        effects: what to learn.
        base: folder of the base model's pipeline, or "world".
        adapt: the recipe of all effects.
        cpus, gpus: of a task. A LoRA is trained on one device, of which a share will do for a small base.
        parallel: tasks at a time; None is as many as the cluster has room for.
        retries: how often an effect is begun again after its worker died or broke down.
    """

    output: str
    effects: tuple[EffectClips, ...] = Field(min_length=1)
    base: str = "world"
    adapt: FineTuneConfig = FineTuneConfig()
    cpus: float = Field(default=1.0, gt=0)
    gpus: float = Field(default=0.0, ge=0, le=1)
    parallel: int | None = Field(default=None, ge=1)
    retries: int = Field(default=2, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "LibraryJob":
        names = [effect.effect.lower() for effect in self.effects]  # some file systems take upper case for lower
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"effect {min(twice)} appears twice; give each a name of its own")
        if "://" in self.output:
            raise ValueError("output is a folder on shared storage, not a URL; copy the library there afterwards")
        return self

    def recipe(self, effect: EffectClips) -> FineTuneConfig:
        """The settings of one effect; what nobody gives stays unset, for the base to decide."""
        own, shared = (config.model_dump(exclude_unset=True) for config in (effect.adapt, self.adapt))
        return FineTuneConfig.parse(shared | own, effect.effect)


class EffectRow(Settings):
    """What became of one effect: "trained" now, "kept" from a run before, or "failed" for the reason in `error`."""

    effect: str
    status: Literal["trained", "kept", "failed"]
    error: str = ""
    loss: float | None = None
    seconds: float = 0.0


class LibraryReport(Settings):
    """What a run did; `manifest` is the manifest's hash, None where no effect could be trained."""

    base: str
    manifest: str | None
    effects: tuple[EffectRow, ...]


def train_library(job: LibraryJob) -> LibraryReport:
    """Trains what is missing and writes manifest and report.

    Raises:
        InputError: the base has no weights, or no machine can run a task.
        OutputError: `output` cannot be written.
    """
    from p2e.bases import open_base

    base, reader = open_base(job.base)
    if reader is None:
        raise InputError(f"{job.base} is a name without weights; give the folder of its diffusers pipeline")
    root = Path(str(reader.folder))
    output = Path(job.output).resolve()
    write_text(output / "job.json", job.to_json())  # fails now rather than after the first effect
    connect()
    check_resources(job.cpus, job.gpus)
    place = job.base if job.base == "world" else str(root.resolve())
    weights = content_digest(sorted(path for path in root.iterdir() if path.is_dir()))
    attempts = Attempts(str(output / "work" / "attempts"), job.retries + 1)
    works = [
        Work(
            effect=effect.effect, clips=str(Path(effect.clips).resolve()), base=place, weights=weights,
            init=tuple(str(Path(path).resolve()) for path in effect.init), settings=job.recipe(effect),
            output=str(output), device="cuda" if job.gpus else "cpu",
        )
        for effect in job.effects
    ]  # fmt: skip
    rows: dict[str, EffectRow] = {}
    records: dict[str, Record] = {}
    look = ray.remote(find_record)
    known = dict(_finished({look.remote(work): work.effect for work in works}))
    waiting: list[Work] = []
    for work in works:
        found = known[work.effect]
        if isinstance(found, Exception):
            rows[work.effect] = EffectRow(effect=work.effect, status="failed", error=failure(found))
        elif found["record"] is None:
            waiting.append(work.model_copy(update={"digest": found["digest"]}))
        else:
            record = records[work.effect] = Record.parse(found["record"])
            rows[work.effect] = EffectRow(effect=work.effect, status="kept", loss=record.loss)
    for name, result in _train(job, waiting, attempts):
        if isinstance(result, Exception):
            rows[name] = EffectRow(effect=name, status="failed", error=failure(result))
        else:
            record = records[name] = Record.parse(result)
            rows[name] = EffectRow(effect=name, status="trained", loss=record.loss, seconds=record.seconds)
        print(f"{name}: {rows[name].status} {rows[name].error}", flush=True)
    attempts.remove()
    manifest = _write_manifest(job, base.name, output, records)
    report = LibraryReport(
        base=base.name, manifest=manifest, effects=tuple(rows[effect.effect] for effect in job.effects)
    )
    write_text(output / "report.json", report.to_json())
    return report


def _train(job: LibraryJob, works: list[Work], attempts: Attempts) -> Iterator[tuple[str, Any]]:
    """(effect, record or what went wrong) of each, as they end; at most `parallel` at a time."""
    task = ray.remote(train_effect).options(
        num_cpus=job.cpus, num_gpus=job.gpus or None, max_retries=job.retries, retry_exceptions=[RuntimeError, OSError]
    )
    size = job.parallel or len(works) or 1
    running: dict[Any, str] = {}
    queue = iter(works)
    while True:
        for work in queue:
            running[task.remote(work, attempts)] = work.effect
            if len(running) >= size:
                break
        if not running:
            return
        (ready, *_), _ = ray.wait(list(running), num_returns=1)
        yield from _finished({ready: running.pop(ready)})


def _finished(tasks: dict[Any, str]) -> Iterator[tuple[str, Any]]:
    """(effect, result or the error in its place) of tasks, in their order."""
    for reference, name in tasks.items():
        try:
            yield name, ray.get(reference)
        except RayTaskError as error:
            yield name, error.cause
        except RayError as error:  # its worker or its machine died once too often
            yield name, error


def _write_manifest(job: LibraryJob, base: str, output: Path, records: dict[str, Record]) -> str | None:
    """Writes the manifest of what there is -> its hash."""
    entries = []
    for effect in job.effects:
        if record := records.get(effect.effect):
            paths = {expert: f"loras/{name}" for expert, name in record.files.items()}
            one = len(paths) == 1
            entries.append(
                Entry(
                    effect=effect.effect, prompts=effect.prompts, split=effect.split, weight=effect.weight,
                    lora=next(iter(paths.values())) if one else paths,
                    sha256=next(iter(record.sha256.values())) if one else record.sha256,
                )
            )  # fmt: skip
    if not entries:
        return None
    manifest = Manifest(base=base, entries=tuple(entries))
    write_text(output / "manifest.yaml", yaml.safe_dump(json.loads(manifest.model_dump_json()), sort_keys=False))
    return manifest.hash


def _run(job: LibraryJob) -> int:
    report = train_library(job)
    counts = {status: sum(row.status == status for row in report.effects) for status in ("trained", "kept", "failed")}
    print(f"{job.output}: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    return 1 if counts["failed"] else 0


def main() -> None:
    run_job(LibraryJob, _run, "Train the LoRAs of many effects on a Ray cluster.")


if __name__ == "__main__":
    # Under its own name, so that workers import what they are sent instead of unpickling a copy of __main__.
    from ray_jobs import library as job

    job.main()
