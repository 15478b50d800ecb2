"""Renders many clips on a Ray cluster: rows of (image, prompt, LoRA) to mp4 files and a JSONL of results.

    python -m ray_jobs.render --config ray_jobs/configs/render_world.yaml

A pool of actors, each with the model loaded once; rows with the same LoRA go together, so that it is swapped seldom. A
row that fails is a line of the results. A clip is named by a digest of all it shows: what is there is not made again.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ray.data
from pydantic import Field

from p2e.adapt.cache import content_digest, digest_of
from p2e.config import RenderConfig, Settings
from p2e.errors import InputError
from p2e.files import file_sizes, write_text
from p2e.render.defaults import render_defaults
from ray_jobs.attempts import Attempts
from ray_jobs.clip_actor import CLIPS, ClipActor
from ray_jobs.command import run_job
from ray_jobs.rows import RenderRow, content, read_rows, row_key
from ray_jobs.session import check_resources, connect, stream

__all__ = ["RenderJob", "RenderPlan", "RenderResult", "plan_rows", "render_missing", "render_rows"]

RECIPE = "1"
"""Version of how clips are made; a change of it makes all of them anew."""


class RenderJob(Settings):
    """Settings of the job.

    Attributes:
        rows: JSONL or Parquet with the fields of `RenderRow`, local or an fsspec URL.
        output: folder for `clips/*.mp4` and `results.jsonl`, local or an fsspec URL; all machines must see it.
        base: folder of the base model's pipeline, or "world".
        render: what differs from the settings that the base was made for.
        scale: whole factor by which clips are enlarged.
        cpus, gpus: of an actor; with GPUs it renders in bfloat16.
        actors: most of them at a time; fewer where there are fewer tasks or less room.
        rows_per_task: rows of one LoRA that an actor takes at a time.
        attempts: how often a row may kill its actor.
    """

    rows: str
    output: str
    base: str = "world"
    render: RenderConfig = RenderConfig()
    scale: int = Field(default=1, ge=1, le=16)
    cpus: float = Field(default=1.0, gt=0)
    gpus: float = Field(default=0.0, ge=0)
    actors: int = Field(default=1, ge=1)
    rows_per_task: int = Field(default=8, ge=1)
    attempts: int = Field(default=3, ge=1)


class RenderResult(Settings):
    """What became of a row: "made" now, "kept" from a run before, or "failed" for the reason in `error`.

    Attributes:
        row: as it was given, its paths resolved.
        video: mp4 in the output folder, None where it failed.
    """

    row: RenderRow
    status: Literal["made", "kept", "failed"]
    video: str | None
    error: str = ""
    seconds: float = 0.0


class RenderPlan(Settings):
    """What is to be done: the rows in their order, the key of each one's clip, and how clips are made."""

    rows: tuple[RenderRow, ...]
    keys: tuple[str, ...]
    base: str
    settings: RenderConfig


def plan_rows(job: RenderJob, rows: Sequence[RenderRow] | None = None) -> RenderPlan:
    """Reads the rows and the base's files, and settles what each clip depends on.

    Args:
        rows: in place of those of the job's file.

    Raises:
        ConfigError, InputError: rows, base or settings that cannot be used.
    """
    from p2e.bases import open_base

    rows = read_rows(job.rows) if rows is None else rows
    base, reader = open_base(job.base)
    if reader is None:
        raise InputError(f"{job.base} is a name without weights; give the folder of its diffusers pipeline")
    root = Path(str(reader.folder)).resolve()
    changes = job.render.model_dump(exclude_unset=True)
    settings = RenderConfig.parse(render_defaults(base).model_dump() | changes, "render")
    weights = content_digest(sorted(path for path in root.iterdir() if path.is_dir()))
    content.cache_clear()  # a run reads each file once, and the next run looks afresh
    common = digest_of(RECIPE, weights, settings.model_dump_json(), job.scale, bool(job.gpus))
    place = job.base if job.base == "world" else str(root)
    return RenderPlan(rows=tuple(rows), keys=tuple(row_key(row, common) for row in rows), base=place, settings=settings)


def render_rows(job: RenderJob) -> list[RenderResult]:
    """Renders what is missing and writes `results.jsonl`, in the order of the rows.

    Raises:
        ConfigError, InputError: rows, base or settings that cannot be used.
        OutputError: `output` cannot be written.
    """
    plan = plan_rows(job)
    output = job.output.rstrip("/") if "://" in job.output else str(Path(job.output).resolve())
    write_text(f"{output}/job.json", job.to_json())  # fails now rather than after the first clip
    there = file_sizes(f"{output}/{CLIPS}")
    named = zip(plan.keys, plan.rows, strict=True)
    missing = {key: row for key, row in named if f"{key}.mp4" not in there}
    done: dict[str, dict[str, Any]] = {}
    for line in render_missing(job, plan, missing, output):
        done[line["key"]] = line
        print(f"{len(done)}/{len(missing)} {line['key']} {line['error']}".rstrip(), flush=True)
    results = []
    for key, row in zip(plan.keys, plan.rows, strict=True):
        line = done.get(key, {"error": "its actor was lost; run the job again" if key in missing else "", "seconds": 0})
        failed = bool(line["error"])
        status = "failed" if failed else "made" if key in missing else "kept"
        video = None if failed else f"{CLIPS}/{key}.mp4"
        results.append(RenderResult(row=row, status=status, video=video, error=line["error"], seconds=line["seconds"]))
    lines = [json.dumps(result.model_dump(mode="json"), ensure_ascii=False) for result in results]
    write_text(f"{output}/results.jsonl", "\n".join(lines) + "\n")
    return results


def render_missing(
    job: RenderJob, plan: RenderPlan, missing: Mapping[str, RenderRow], output: str, *,
    carry: Mapping[str, str] | None = None, then: Sequence[tuple[Any, dict[str, Any]]] = (),
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """A line for each row that is missing, as its clip is done.

    Args:
        missing: by key.
        carry: key -> what goes with the row's line.
        then: further stages that take the lines; see `stream`.

    Raises:
        InputError: no machine can run an actor.
    """
    if not missing:
        return
    connect()
    check_resources(job.cpus, job.gpus)
    attempts = Attempts(f"{output}/attempts", job.attempts)
    tasks = _tasks(missing, job.rows_per_task, carry or {})
    arguments = {
        "base": plan.base, "settings": plan.settings, "scale": job.scale, "gpu": bool(job.gpus), "output": output,
        "attempts": attempts,
    }  # fmt: skip
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=min(job.actors, len(tasks)))
    yield from stream(
        tasks, ClipActor, flat=True, fn_constructor_kwargs=arguments, compute=pool, num_cpus=job.cpus,
        num_gpus=job.gpus or None, then=then,
    )  # fmt: skip
    attempts.remove()


def _tasks(missing: Mapping[str, RenderRow], size: int, carry: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows with their keys, those of one LoRA next to one another, in groups of one LoRA each."""
    by_lora: dict[str, list[str]] = {}
    for key, row in missing.items():
        said = json.dumps([key, row.model_dump(mode="json"), carry.get(key, "")])
        by_lora.setdefault(json.dumps(row.lora), []).append(said)
    return [{"rows": own[i : i + size]} for own in by_lora.values() for i in range(0, len(own), size)]


def _run(job: RenderJob) -> int:
    results = render_rows(job)
    counts = {status: sum(row.status == status for row in results) for status in ("made", "kept", "failed")}
    for failed in [result for result in results if result.status == "failed"][:20]:
        print(f"{failed.row.id or failed.row.prompt[:40]}: {failed.error}")
    print(f"{job.output}: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    return 1 if counts["failed"] else 0


def main() -> None:
    run_job(RenderJob, _run, "Render many clips on a Ray cluster.")


if __name__ == "__main__":
    # Under its own name, so that workers import what they are sent instead of unpickling a copy of __main__.
    from ray_jobs import render as job

    job.main()
