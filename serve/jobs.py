"""Video jobs that outlive whoever works on them.

    queued -> in_progress -> completed | failed | cancelled
       ^___________|   a lease ran out: once, then failed with worker_died

A renderer claims a job for a time (its lease), and renews it with every heartbeat. Whoever finds a lease run out puts
the job back, or ends it where it was put back before. A renderer that was only slow finds its attempt gone and throws
its work away: each change names the attempt that it is of, and no change is made to a job that has ended, so that there
is exactly one end.

Why SQL and not Ray Serve's task consumers: those are Celery's, need a broker beside the service, know neither progress
nor cancelling of a task under way, and keep results as long as the broker does. A laptop has SQLite; a platform has a
database that it backs up.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from sqlalchemy import Engine, case, delete, func, insert, select, update

from serve.database import READ_ONLY, Gate, IdempotencyRow, JobRow
from serve.effects import use_effect
from serve.errors import Conflict, NotFound, QueueFull, QuotaExceeded, checked_id
from serve.idempotency import forget_key, known_key, same_request, write_key
from serve.job import ENDED, Beat, Idempotency, Job, JobSettings, Page, Status, Swept
from serve.outbox import forget_events, record_end

__all__ = ["JobStore"]

VIDEOS = "videos"
COLUMNS = JobRow.__table__.columns


class JobStore:
    """Jobs in a database.

    Args:
        engine: as `open_database` gives it.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        engine: Engine,
        settings: JobSettings = JobSettings(),  # noqa: B008  frozen
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.engine, self.settings, self.clock = engine, settings, clock
        self._reader = engine.execution_options(**READ_ONLY)

    def submit(
        self,
        owner: str,
        request: dict[str, Any],
        *,
        steps: int,
        effect_id: str | None = None,
        lora: str | None = None,
        idempotency: Idempotency | None = None,
        owner_limit: int | None = None,
    ) -> tuple[Job, bool]:
        """A new job, or the one that the same key has had before -> it, and whether it is new.

        Args:
            lora: the artefact that the effect must still have, and the owner the effect.

        Raises:
            NotFound: the effect has gone meanwhile.
            KeyReused: the key came with another request.
            QueueFull: too many jobs wait.
            QuotaExceeded: the owner has too many jobs that have not ended.
        """
        now = self.clock()
        with self.engine.begin() as connection:
            # Written first: submissions wait for one another here, and what is counted below does not change meanwhile.
            connection.execute(update(Gate).where(Gate.id == 1).values(sequence=Gate.sequence + 1))
            if idempotency is not None and (known := self._known(connection, owner, idempotency, now)) is not None:
                return known, False
            self._check_limits(connection, owner, owner_limit or self.settings.owner_limit)
            if effect_id is not None and lora is not None:
                use_effect(connection, effect_id, owner, lora, now)
            sequence = connection.execute(select(Gate.sequence).where(Gate.id == 1)).scalar_one()
            job_id = f"video_{secrets.token_hex(16)}"
            connection.execute(
                insert(JobRow).values(
                    id=job_id, owner=owner, status="queued", request=request, effect_id=effect_id, steps=steps,
                    steps_done=0, attempt=0, cancel_asked=0, created_at=now, sequence=sequence,
                )
            )  # fmt: skip
            if idempotency is not None:
                write_key(connection, owner, VIDEOS, idempotency, job_id, now)
            row = connection.execute(select(*COLUMNS).where(JobRow.id == job_id)).one()
        return Job(**row._mapping), True

    def _known(self, connection: Any, owner: str, idempotency: Idempotency, now: float) -> Job | None:
        row = known_key(connection, owner, VIDEOS, idempotency.key, now - self.settings.idempotency_s)
        if row is None:
            return None
        job = connection.execute(select(*COLUMNS).where(JobRow.id == row.answer)).first()
        if job is None:
            forget_key(connection, owner, VIDEOS, idempotency.key)
            return None
        same_request(row, idempotency)
        return Job(**job._mapping)

    def _check_limits(self, connection: Any, owner: str, owner_limit: int) -> None:
        open_jobs = JobRow.status.in_(("queued", "in_progress"))
        waiting = connection.execute(select(func.count()).where(JobRow.status == "queued")).scalar_one()
        mine = connection.execute(select(func.count()).where(open_jobs, JobRow.owner == owner)).scalar_one()
        if mine >= owner_limit:
            raise QuotaExceeded(f"{mine} jobs of this key have not ended; wait for one of them", retry_after_s=10)
        if waiting >= self.settings.queue_limit:
            raise QueueFull("the queue is full; try again later", retry_after_s=10)

    def get(self, job_id: str, owner: str | None = None) -> Job:
        """A job of an owner; of anyone where none is given.

        Raises:
            NotFound: there is none, or it is another's.
        """
        with self._reader.connect() as connection:
            row = connection.execute(select(*COLUMNS).where(JobRow.id == checked_id(job_id, "video"))).first()
        if row is None or (owner is not None and row.owner != owner):
            raise NotFound(f"no video {job_id}")
        return Job(**row._mapping)

    def page(
        self, owner: str, *, after: str | None = None, limit: int = 20, order: Literal["asc", "desc"] = "desc"
    ) -> Page:
        """Jobs of an owner by time of arrival.

        Raises:
            NotFound: `after` is none of the owner's.
        """
        query = select(*COLUMNS).where(JobRow.owner == owner)
        if after is not None:
            last = self.get(after, owner).sequence
            query = query.where(JobRow.sequence < last if order == "desc" else JobRow.sequence > last)
        query = query.order_by(JobRow.sequence.desc() if order == "desc" else JobRow.sequence).limit(limit + 1)
        with self._reader.connect() as connection:
            jobs = [Job(**row._mapping) for row in connection.execute(query)]
        return Page(jobs[:limit], len(jobs) > limit)

    def depth(self) -> dict[str, int]:
        """How many jobs are in each state."""
        with self._reader.connect() as connection:
            rows = connection.execute(select(JobRow.status, func.count()).group_by(JobRow.status)).all()
        return {row[0]: row[1] for row in rows}

    def longest_wait(self) -> float:
        """Seconds that the first of the queue has waited; 0 where none does."""
        with self._reader.connect() as connection:
            first = connection.execute(select(func.min(JobRow.created_at)).where(JobRow.status == "queued")).scalar()
        return 0.0 if first is None else max(0.0, self.clock() - first)

    def claim(self, worker: str, holding: Sequence[str] = ()) -> Job | None:
        """The job that a renderer is to do next, now its own for a lease; None where none waits.

        Args:
            worker: the renderer's name, another one each time that it starts.
            holding: effects whose LoRA it holds: their jobs go before older ones, for a while.
        """
        while True:
            now = self.clock()
            patient = JobRow.created_at > now - self.settings.affinity_wait_s
            first = case((JobRow.effect_id.in_(list(holding)) | ~patient, 0), else_=1)
            with self._reader.connect() as connection:
                candidate = connection.execute(
                    select(JobRow.id, JobRow.attempt).where(JobRow.status == "queued").order_by(first, JobRow.sequence)
                ).first()
            if candidate is None:
                return None
            with self.engine.begin() as connection:
                taken = connection.execute(
                    update(JobRow)
                    .where(JobRow.id == candidate.id, JobRow.status == "queued", JobRow.attempt == candidate.attempt)
                    .values(
                        status="in_progress", worker=worker, attempt=JobRow.attempt + 1, steps_done=0,
                        lease_until=now + self.settings.lease_s,
                        started_at=func.coalesce(JobRow.started_at, now),
                    )
                )  # fmt: skip
                if taken.rowcount == 1:
                    row = connection.execute(select(*COLUMNS).where(JobRow.id == candidate.id)).one()
                    return Job(**row._mapping)

    def _mine(self, job: Job) -> tuple[Any, ...]:
        """Holds while a claimed job is still its claimer's."""
        return (
            JobRow.id == job.id,
            JobRow.status == "in_progress",
            JobRow.worker == job.worker,
            JobRow.attempt == job.attempt,
        )

    def beat(self, job: Job, steps_done: int) -> Beat:
        """Renews the lease of a claimed job; progress never goes back."""
        with self.engine.begin() as connection:
            done = case((JobRow.steps_done > steps_done, JobRow.steps_done), else_=steps_done)
            renewed = connection.execute(
                update(JobRow)
                .where(*self._mine(job))
                .values(lease_until=self.clock() + self.settings.lease_s, steps_done=done)
            )
            if renewed.rowcount != 1:
                return Beat.LOST
            asked = connection.execute(select(JobRow.cancel_asked).where(JobRow.id == job.id)).scalar_one()
        return Beat.CANCEL if asked else Beat.GO

    def complete(self, job: Job, artefact: str) -> bool:
        """Ends a claimed job with a video -> whether it was still the caller's. One that was to be cancelled and came
        out all the same is complete."""
        return self._end(self._mine(job), "completed", artefact=artefact, steps_done=job.steps)

    def fail(self, job: Job, code: str, message: str) -> bool:
        """Ends a claimed job without a video -> whether it was still the caller's."""
        return self._end(self._mine(job), "failed", error_code=code, error_message=message)

    def stop(self, job: Job) -> bool:
        """Ends a claimed job that was to be cancelled -> whether it was still the caller's."""
        return self._end(self._mine(job), "cancelled")

    def _end(self, condition: Sequence[Any], status: Status, **values: Any) -> bool:
        now = self.clock()
        ending = update(JobRow).where(*condition).values(
            status=status, ended_at=now, expires_at=now + self.settings.keep_s, lease_until=None, worker=None, **values
        )  # fmt: skip
        with self.engine.begin() as connection:  # whoever is to be told of the end is so with it, or not at all
            row = connection.execute(ending.returning(*COLUMNS)).first()
            if row is not None:
                record_end(connection, Job(**row._mapping))
        return row is not None

    def cancel(self, job_id: str, owner: str) -> Job:
        """Ends a job that waits, and asks the renderer of one under way to stop, which it does within a step. Asked
        again, it is the same.

        Raises:
            NotFound: there is no such job of the owner.
            Conflict: it has completed or failed.
        """
        while True:
            job = self.get(job_id, owner)
            if job.status == "cancelled":
                return job
            if job.ended:
                raise Conflict(f"video {job_id} is {job.status} already")
            if job.status == "queued":
                if self._end((JobRow.id == job_id, JobRow.status == "queued"), "cancelled"):
                    return self.get(job_id, owner)
                continue
            with self.engine.begin() as connection:
                asked = connection.execute(
                    update(JobRow).where(JobRow.id == job_id, JobRow.status == "in_progress").values(cancel_asked=1)
                )
            if asked.rowcount == 1:
                return self.get(job_id, owner)

    def delete(self, job_id: str, owner: str) -> str | None:
        """Forgets an ended job -> its artefact, for the caller to remove.

        Raises:
            NotFound: there is no such job of the owner.
            Conflict: it has not ended; cancel it first.
        """
        job = self.get(job_id, owner)
        with self.engine.begin() as connection:
            gone = connection.execute(delete(JobRow).where(JobRow.id == job_id, JobRow.status.in_(ENDED)))
        if gone.rowcount != 1:
            raise Conflict(f"video {job_id} is {job.status}; cancel it first")
        return job.artefact

    def sweep(self) -> Swept:
        """Takes jobs from renderers that were not heard of, and forgets what has expired. Any number of sweepers may
        run."""
        now = self.clock()
        requeued, failed, cancelled = [], [], []
        with self._reader.connect() as connection:
            late = [
                Job(**row._mapping)
                for row in connection.execute(
                    select(*COLUMNS).where(JobRow.status == "in_progress", JobRow.lease_until < now)
                )
            ]
        for job in late:
            still = (*self._mine(job), JobRow.lease_until < now)
            if job.cancel_asked:
                if self._end(still, "cancelled"):
                    cancelled.append(job.id)
            elif job.attempt >= self.settings.attempts:
                message = "the renderer was lost more than once; submit it again"
                if self._end(still, "failed", error_code="worker_died", error_message=message):
                    failed.append(job.id)
            else:
                with self.engine.begin() as connection:
                    back = update(JobRow).where(*still).values(status="queued", worker=None, lease_until=None)
                    if connection.execute(back).rowcount == 1:
                        requeued.append(job.id)
        taken = {*requeued, *failed, *cancelled}
        workers = [job.worker for job in late if job.id in taken and job.worker is not None]
        return Swept(requeued, failed, cancelled, self._forgotten(now), workers)

    def _forgotten(self, now: float) -> list[str]:
        """Clears the artefacts of jobs that have expired, and the records that are older still."""
        expired = (JobRow.expires_at < now, JobRow.artefact.is_not(None))
        with self._reader.connect() as connection:
            old = connection.execute(select(JobRow.id, JobRow.artefact).where(*expired)).all()
        artefacts = []
        with self.engine.begin() as connection:
            for row in old:
                cleared = update(JobRow).where(JobRow.id == row.id, *expired).values(artefact=None)
                if connection.execute(cleared).rowcount == 1:
                    artefacts.append(row.artefact)
            connection.execute(
                delete(JobRow).where(JobRow.ended_at < now - self.settings.remember_s, JobRow.artefact.is_(None))
            )
            forget_events(connection, now - self.settings.remember_s)
            age = now - self.settings.idempotency_s
            connection.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < age))
        return artefacts
