"""Renders and scores a suite on a Ray cluster: every method on every effect in every scene.

    python -m ray_jobs.evaluate --config ray_jobs/configs/evaluate_world.yaml

LoRAs that are missing are made, clips go from the renderers to the metrics as they are done, and then to the judge.
Everything is named by what it depends on and kept in the run's folder (`eval.run_files`): running again does what is
missing, so a run may be killed at any point.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.data
from pydantic import Field
from ray.exceptions import RayError, RayTaskError

from eval.judging import judge_missing, judge_of
from eval.lora_makers import make_loras
from eval.lora_plan import plan_loras
from eval.progress import Progress
from eval.run_files import RunFiles, Score, lines_of
from eval.score_log import ScoreLog
from eval.suite import Suite
from eval.suite_files import load_suite
from eval.sweep import (
    CellRow,
    Estimate,
    cell_rows,
    clips_there,
    estimate,
    missing_scores,
    place_images,
    score_works,
    still_key,
    unreadable_clips,
    write_still,
)  # fmt: skip
from p2e.config import Settings
from p2e.errors import P2EError
from p2e.files import read_text, write_text
from p2e.world.config import WorldLibraryConfig
from ray_jobs.attempts import Attempts
from ray_jobs.command import run_job
from ray_jobs.metric_actor import MetricActor, read_recipes
from ray_jobs.render import RenderJob, RenderPlan, plan_rows, render_missing
from ray_jobs.session import check_resources, connect, exists, failure, remove, stream

__all__ = ["EvaluateJob", "EvaluateReport", "evaluate", "run_evaluation"]


class EvaluateJob(Settings):
    """Settings of the job.

    Attributes:
        suite: name of one that ships (`eval/suites`), or a YAML file, local or an fsspec URL.
        output: folder of the run, local or an fsspec URL; all machines must see it.
        effects, scenes: so many of the suite's; None is all.
        only: effects by name.
        methods: titles or columns; none is all.
        judge: settings of the judge, in place of the suite's.
        recipe: how LoRAs of init:N and lora:N are trained.
        cpus, gpus: of a renderer, and of a task that makes LoRAs; with GPUs clips are rendered in bfloat16.
        actors: most renderers at a time.
        rows_per_task: clips of one LoRA that a renderer takes at a time, which are then scored.
        scale: whole factor by which clips are enlarged; None is 2 for the world's small ones, of which coding then
            takes less (see `eval.metrics.oracle`), and 1 for others.
        metric_cpus, metric_gpus, metric_actors: of the actors that score.
        attempts: how often a clip may kill its actor.
        retry_errors: what could not be scored is tried again; clips that failed always are.
        plan_only: says what there is to do, and what it will cost; of it, only first frames are put into the folder.
        seconds_per_step: of a renderer, for the estimate; None takes the last run's, or the world's.
    """

    suite: str
    output: str
    effects: int | None = Field(default=None, ge=1)
    scenes: int | None = Field(default=None, ge=1)
    only: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    judge: dict[str, Any] | None = None
    recipe: WorldLibraryConfig = WorldLibraryConfig()
    cpus: float = Field(default=1.0, gt=0)
    gpus: float = Field(default=0.0, ge=0)
    actors: int = Field(default=1, ge=1)
    rows_per_task: int = Field(default=8, ge=1)
    scale: int | None = Field(default=None, ge=1, le=16)
    metric_cpus: float = Field(default=1.0, gt=0)
    metric_gpus: float = Field(default=0.0, ge=0)
    metric_actors: int = Field(default=1, ge=1)
    attempts: int = Field(default=3, ge=1)
    retry_errors: bool = False
    plan_only: bool = False
    seconds_per_step: float | None = Field(default=None, gt=0)


class EvaluateReport(Settings):
    """What a run did.

    Attributes:
        made, kept, failed: clips, each counted once however many rows share it; `failed` counts rows.
        scored: scores taken now, with nulls; `nulls` of them could not be.
        judged: of the judge.
    """

    made: int = 0
    kept: int = 0
    failed: int = 0
    scored: int = 0
    nulls: int = 0
    judged: int = 0


def evaluate(job: EvaluateJob) -> EvaluateReport:
    """Does what is missing of a run.

    Raises:
        ConfigError, InputError: suite, base, library or metrics that cannot be used.
        OutputError: `output` cannot be written.
    """
    suite = load_suite(
        job.suite, effects=job.effects, scenes=job.scenes, only=job.only, methods=job.methods, judge=job.judge
    )
    sweep = _Sweep(job, suite)
    print(sweep.estimate().text(), flush=True)
    return EvaluateReport() if job.plan_only else sweep.run()


class _Sweep:
    """One run of the job."""

    def __init__(self, job: EvaluateJob, suite: Suite) -> None:
        self.job, self.suite = job, suite
        self.output = job.output.rstrip("/") if "://" in job.output else str(Path(job.output).resolve())
        self.files = RunFiles(self.output)
        self.images = place_images(suite, self.output)
        self.loras = plan_loras(suite, self.output, job.recipe)
        self.loras.settle(self.files.path("loras"), {}, self.loras.pending)
        self.failed_loras: dict[str, str] = {}
        self.progress = Progress()
        scale = job.scale or (2 if suite.base == "world" else 1)
        values = {name: getattr(job, name) for name in ("cpus", "gpus", "actors", "rows_per_task", "attempts")}
        self.render = RenderJob.parse(
            values | {"rows": "", "output": self.output, "base": suite.base, "render": suite.render, "scale": scale}
        )

    def estimate(self) -> Estimate:
        """What is left to do, as far as can be told before LoRAs are made."""
        cells, plan, keys = self._cells()
        there = clips_there(self.output)
        scored = {(score.clip, score.effect, score.metric) for score in self.files.scores().values()}
        names = [settings.name for settings in self.suite.metrics]
        known = {(key, cell.effect) for cell, key in zip(cells, keys, strict=True) if key is not None}
        unknown = sum(key is None and not cell.error for cell, key in zip(cells, keys, strict=True))
        scores = sum((*pair, name) not in scored for pair in known for name in names) + unknown * len(names)
        return estimate(
            self.suite, self.loras, cells, keys, there, scores, plan.settings.steps, self._rate(), self.job.actors,
            bool(self.job.gpus),
        )  # fmt: skip

    def _rate(self) -> float | None:
        """Seconds a step: as given, or as the last run with such renderers measured it."""
        if self.job.seconds_per_step is not None or not exists(self.files.path("timing.json")):
            return self.job.seconds_per_step
        last = json.loads(read_text(self.files.path("timing.json")))
        return last.get("seconds_per_step") if last.get("gpu") == bool(self.job.gpus) else None

    def _cells(self) -> tuple[list[CellRow], RenderPlan, list[str | None]]:
        """The rows of the run, how clips are made, and the key of each row's clip where it is known."""
        cells = cell_rows(self.suite, self.loras, self.output, self.images)
        plan = plan_rows(self.render, [cell.row for cell in cells if cell.row is not None])
        rendered = iter(plan.keys)
        keys = [
            still_key(f"{self.output}/{cell.image}", plan.settings, self.render.scale) if cell.still
            else next(rendered) if cell.row is not None else None
            for cell in cells
        ]  # fmt: skip
        return cells, plan, keys

    def run(self) -> EvaluateReport:
        job = self.job
        if self.suite.judge is not None:
            judge_of(self.suite.judge)  # fails now rather than after the last clip
        write_text(self.files.path("suite.json"), self.suite.to_json())
        write_text(self.files.path("job.json"), job.to_json())
        connect()
        check_resources(job.cpus, job.gpus)
        recipes = self._recipes()
        self._make_loras()
        cells, plan, keys = self._cells()
        if job.retry_errors:
            for key in unreadable_clips(self.files.scores().values()) & {*keys}:
                remove(self.files.path(f"clips/{key}.mp4"))  # it is made anew
        before = clips_there(self.output)
        self._write_clips(cells, keys, {})
        self._write_stills(cells, keys, plan, before)
        errors, scored, nulls = self._render_and_score(cells, plan, keys, recipes)
        self._write_clips(cells, keys, errors)
        judged = self._judge(cells, keys)
        self.progress.write(self.files.path("timing.json"), plan.settings.steps, bool(job.gpus))
        after, known = clips_there(self.output), {key for key in keys if key is not None}
        failed = sum(key is None or key in errors for key in keys)
        return EvaluateReport(
            made=len((known & after) - before), kept=len(known & before), failed=failed, scored=scored,
            nulls=nulls, judged=judged,
        )  # fmt: skip

    def _recipes(self) -> list[tuple[str, str]]:
        """Name and recipe of each metric, read where metrics run."""
        if not self.suite.metrics:
            return []
        job = self.job
        check_resources(job.metric_cpus, job.metric_gpus)
        task = ray.remote(read_recipes).options(num_cpus=job.metric_cpus, num_gpus=job.metric_gpus or None)
        try:
            return ray.get(task.remote(self.suite.metrics, "cuda" if job.metric_gpus else "cpu"))
        except RayTaskError as error:
            if isinstance(error.cause, P2EError):
                raise error.cause from None
            raise

    def _make_loras(self) -> None:
        """Makes the LoRAs that are missing; one that cannot be made is an error of its rows."""
        tasks, device = self.loras.tasks, "cuda" if self.job.gpus else "cpu"
        make = ray.remote(make_loras).options(num_cpus=self.job.cpus, num_gpus=self.job.gpus or None)
        running = {make.remote(task, device): task for task in tasks}
        count = sum(len(task.wanted) for task in tasks)
        done, failed = 0, self.failed_loras
        while running:
            (ready, *_), _ = ray.wait(list(running), num_returns=1)
            task = running.pop(ready)
            try:
                result = ray.get(ready)
            except RayError as error:  # its worker died too often
                result = {want.key: failure(error) for want in task.wanted}
            failed |= {key: error for key, error in result.items() if error}
            done += len(task.wanted)
            print(f"LoRAs {done}/{count}", flush=True)
        self.loras.settle(f"{self.output}/loras", failed)

    def _write_clips(self, cells: Sequence[CellRow], keys: Sequence[str | None], errors: Mapping[str, str]) -> None:
        lines = [
            cell.line(None if key is None or key in errors else key, errors.get(key or "", ""))
            for cell, key in zip(cells, keys, strict=True)
        ]
        write_text(self.files.path("clips.jsonl"), lines_of(lines))

    def _write_stills(
        self, cells: Sequence[CellRow], keys: Sequence[str | None], plan: RenderPlan, there: set[str]
    ) -> None:
        stills = {key: cell.image for cell, key in zip(cells, keys, strict=True) if cell.still and key is not None}
        for key, image in stills.items():
            if key not in there:
                write_still(
                    f"{self.output}/clips/{key}.mp4", f"{self.output}/{image}", plan.settings, self.render.scale
                )

    def _render_and_score(
        self, cells: Sequence[CellRow], plan: RenderPlan, keys: Sequence[str | None], recipes: list[tuple[str, str]]
    ) -> tuple[dict[str, str], int, int]:
        """Makes clips and takes scores -> clip key -> error, scores taken, nulls of them."""
        there = clips_there(self.output)
        works = score_works(self.suite, cells, keys, self.output)
        log = ScoreLog(self.output, "metrics")  # the lock comes before anything is read
        with log:
            left = missing_scores(works, dict(recipes), self.files.scores(), self.job.retry_errors)
            rows = {k: c.row for c, k in zip(cells, keys, strict=True) if k is not None and c.row is not None}
            missing = {key: row for key, row in rows.items() if key not in there}
            carry = {key: json.dumps([work.model_dump() for work in own]) for key, own in left.items()}
            scores = sum(len(work.metrics) for own in left.values() for work in own)
            self.progress.begin(len(missing), scores)
            errors = dict.fromkeys(missing, "its actor was lost; run the job again")
            taken = nulls = 0
            for line in self._lines(plan, missing, carry, {k for k in left if k in there}, recipes):
                key, found = str(line["key"]), [Score.parse(v) for v in json.loads(line.get("scores", "[]"))]
                log.add(found)
                taken, nulls = taken + len(found), nulls + sum(score.value is None for score in found)
                if line["error"]:
                    errors[key] = line["error"]
                else:
                    errors.pop(key, None)
                self.progress.add(line, key in missing, len(found))
        self.progress.end()
        return errors, taken, nulls

    def _lines(
        self, plan: RenderPlan, missing: Mapping[str, Any], carry: Mapping[str, str], kept: set[str],
        recipes: list[tuple[str, str]],
    ) -> Iterator[dict[str, Any]]:  # fmt: skip
        """A line for every clip that is rendered, scored, or both, as they are done."""
        attempts = Attempts(f"{self.output}/attempts", self.job.attempts)
        if not recipes:
            yield from render_missing(self.render, plan, missing, self.output)
            return
        together = self._fit_together()
        stage, options = self._metric_stage(recipes, attempts)
        rendered = []
        for line in render_missing(
            self.render, plan, missing, self.output, carry=carry, then=[(stage, options)] if together else ()
        ):
            if together:
                yield line
            else:
                rendered.append(line)
        old = {"error": "", "seconds": 0.0, "actor": ""}
        rendered += [{"key": key, "carry": carry[key], **old} for key in sorted(kept)]
        yield from stream(rendered, stage, flat=True, **options)
        attempts.remove()

    def _metric_stage(self, recipes: list[tuple[str, str]], attempts: Attempts) -> tuple[Any, dict[str, Any]]:
        job = self.job
        arguments = {
            "metrics": self.suite.metrics, "recipes": recipes, "gpu": bool(job.metric_gpus), "attempts": attempts,
        }  # fmt: skip
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=job.metric_actors)
        options = {"fn_constructor_kwargs": arguments, "compute": pool, "num_cpus": job.metric_cpus}
        return MetricActor, options | {"num_gpus": job.metric_gpus or None}

    def _fit_together(self) -> bool:
        """Whether a renderer and a metric have room at one time; else one waits for the other to end."""
        job, have = self.job, ray.cluster_resources()
        cpus, gpus = job.cpus + job.metric_cpus, job.gpus + job.metric_gpus
        return have.get("CPU", 0) >= cpus and have.get("GPU", 0) >= gpus

    def _judge(self, cells: Sequence[CellRow], keys: Sequence[str | None]) -> int:
        """Has the judge score what it has not yet -> how many scores it gave."""
        if self.suite.judge is None:
            return 0
        there = clips_there(self.output)
        works = score_works(self.suite, cells, [key if key in there else None for key in keys], self.output)
        with ScoreLog(self.output, "judge") as log:
            count = 0
            for scores in judge_missing(self.suite.judge, works, self.files, self.job.retry_errors):
                log.add(scores)
                count += len(scores)
                print(f"judge: {count} scores", flush=True)
        return count


def run_evaluation(job: EvaluateJob) -> int:
    """Evaluates, and says what was done -> 1 where a row failed, else 0."""
    report = evaluate(job)
    if job.plan_only:
        return 0
    parts = f"{report.made} clips made, {report.kept} kept, {report.failed} rows failed"
    print(f"{job.output}: {parts}; {report.scored} scores taken, {report.nulls} of them null; {report.judged} judged")
    return 1 if report.failed else 0


def main() -> None:
    run_job(EvaluateJob, run_evaluation, "Render and score a suite on a Ray cluster.")


if __name__ == "__main__":
    # Under its own name, so that workers import what they are sent instead of unpickling a copy of __main__.
    from ray_jobs import evaluate as job

    job.main()
