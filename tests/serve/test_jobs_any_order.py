"""Whatever callers, renderers and sweepers do in whatever order, a job ends once and is nobody's twice."""

import json
import shutil
import tempfile
from pathlib import Path

from databases import Clock
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from sqlalchemy import select

from serve.database import WebhookRow, open_database
from serve.errors import Conflict
from serve.job import ENDED, Beat, Job, JobSettings
from serve.jobs import JobStore

LEASE = 60
REQUEST = {"prompt": "a fox", "clip": {"frames": 9, "fps": 8, "width": 48, "height": 32},
           "webhook": {"url": "https://hooks.example.com/", "model": "world"}}  # fmt: skip


class AnyOrder(RuleBasedStateMachine):
    """The store beside a model of what it may say."""

    jobs = Bundle("jobs")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = Clock()
        self.store = JobStore(
            open_database(f"sqlite:///{self.folder / 'jobs.sqlite'}"),
            JobSettings(queue_limit=1000, owner_limit=1000, lease_s=LEASE), self.clock,
        )  # fmt: skip
        self.ended: dict[str, Job] = {}
        self.attempts: dict[str, int] = {}
        self.ends = 0

    def teardown(self) -> None:
        self.store.engine.dispose()
        shutil.rmtree(self.folder)

    @rule(target=jobs)
    def submit(self) -> str:
        return self.store.submit("a", REQUEST, steps=4)[0].id

    @rule(target=claims, worker=st.sampled_from(["r1", "r2"]))
    def claim(self, worker: str) -> Job | None:
        job = self.store.claim(worker)
        if job is not None:
            self.attempts[job.id] = self.attempts.get(job.id, 0) + 1
            assert job.attempt == self.attempts[job.id] <= self.store.settings.attempts
        return job

    @rule(seconds=st.sampled_from([1, LEASE // 2, LEASE + 1]))
    def pass_time(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule(job=claims, steps=st.integers(0, 4))
    def beat(self, job: Job | None, steps: int) -> None:
        if job is not None:
            said, now = self.store.beat(job, steps), self.store.get(job.id)
            assert (said is Beat.LOST) == (now.status != "in_progress" or now.attempt != job.attempt)
            assert said is not Beat.CANCEL or now.cancel_asked

    @rule(job=claims, how=st.sampled_from(["complete", "fail", "stop"]))
    def end(self, job: Job | None, how: str) -> None:
        if job is None:
            return
        before = self.store.get(job.id)
        calls = {
            "complete": lambda: self.store.complete(job, f"{job.id}.mp4"),
            "fail": lambda: self.store.fail(job, "oom", "out of memory"),
            "stop": lambda: self.store.stop(job),
        }
        ended = calls[how]()
        assert ended == (before.status == "in_progress" and before.attempt == job.attempt)
        self.ends += ended

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        before = self.store.get(job_id)
        try:
            after = self.store.cancel(job_id, "a")
            assert before.status != "completed" and before.status != "failed"
            assert after.status == "cancelled" or after.cancel_asked
            self.ends += before.status == "queued"
        except Conflict:
            assert before.status in ("completed", "failed")

    @rule()
    def sweep(self) -> None:
        found = self.store.sweep()
        self.ends += len(found.failed) + len(found.cancelled)
        for job_id in found.requeued:
            assert self.store.get(job_id).status == "queued"

    @invariant()
    def what_has_ended_stays(self) -> None:
        jobs = self.store.page("a", limit=1000).jobs
        for job in jobs:
            if job.ended:
                assert self.ended.setdefault(job.id, job) == job
            assert (job.worker is not None) == (job.status == "in_progress") == (job.lease_until is not None)
            assert job.ended == (job.ended_at is not None) == (job.status in ENDED)
        assert self.ends == len(self.ended) == sum(job.ended for job in jobs)

    @invariant()
    def every_end_is_told_once(self) -> None:
        with self.store.engine.connect() as connection:
            told = connection.execute(select(WebhookRow.job_id, WebhookRow.body)).all()
        found = sorted((row.job_id, json.loads(row.body)["data"]["status"]) for row in told)
        assert found == sorted((job.id, job.status) for job in self.store.page("a", limit=1000).jobs if job.ended)


AnyOrder.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestAnyOrder = AnyOrder.TestCase
