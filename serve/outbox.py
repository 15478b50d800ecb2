"""Events that are still to be sent, in the same database as the jobs that they are of (a transactional outbox).

An event is written in the transaction in which its job ends, so that neither is there without the other. A deliverer
takes one for a time, as a renderer takes a job; what becomes of it is said afterwards. Whoever dies between sending
and saying so has sent an event that is sent again: at least once, never not at all.
"""

import datetime
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Engine, delete, func, insert, select, update

from serve.database import READ_ONLY, WebhookRow
from serve.job import Job
from serve.schemas import video_object

__all__ = ["Event", "Outbox", "forget_events", "record_end"]

COLUMNS = ("id", "job_id", "owner", "url", "body", "created_at", "claims", "attempts")


@dataclass(frozen=True)
class Event:
    """An event as it was claimed; the fields are those of `WebhookRow`."""

    id: str
    job_id: str
    owner: str
    url: str
    body: str
    created_at: float
    claims: int
    attempts: int


def record_end(connection: Connection, job: Job) -> None:
    """Writes the event of a job that ends in this transaction, where its request names somebody to be told."""
    told: dict[str, str] | None = job.request.get("webhook")
    if told is None:
        return
    now = job.ended_at or 0.0
    when = datetime.datetime.fromtimestamp(now, datetime.UTC).isoformat(timespec="milliseconds")
    data = video_object(job, told["model"])
    event = {"type": f"video.{job.status}", "timestamp": when.replace("+00:00", "Z"), "data": data}
    connection.execute(
        insert(WebhookRow).values(
            id=f"evt_{secrets.token_hex(16)}", job_id=job.id, owner=job.owner, url=told["url"],
            body=json.dumps(event, separators=(",", ":")), created_at=now, due_at=now, claims=0, attempts=0,
        )
    )  # fmt: skip


def forget_events(connection: Connection, before: float) -> None:
    """Deletes the events of so long ago, whatever became of them."""
    connection.execute(delete(WebhookRow).where(WebhookRow.created_at < before))


class Outbox:
    """Events in a database.

    Args:
        engine: as `open_database` gives it.
        clock: seconds since 1970.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self.engine, self.clock = engine, clock
        self._reader = engine.execution_options(**READ_ONLY)

    def claim(self, most: int, lease_s: float) -> list[Event]:
        """Some events that are due, longest first, the caller's for a lease."""
        now = self.clock()
        columns = [getattr(WebhookRow, name) for name in COLUMNS]
        due = select(*columns).where(WebhookRow.due_at <= now).order_by(WebhookRow.due_at, WebhookRow.id).limit(most)
        with self._reader.connect() as connection:
            found = [Event(**row._mapping) for row in connection.execute(due)]
        return [taken for event in found if (taken := self._taken(event, now, lease_s)) is not None]

    def _taken(self, event: Event, now: float, lease_s: float) -> Event | None:
        unclaimed = (WebhookRow.id == event.id, WebhookRow.claims == event.claims, WebhookRow.due_at <= now)
        values = {"claims": event.claims + 1, "due_at": now + lease_s}
        with self.engine.begin() as connection:
            if connection.execute(update(WebhookRow).where(*unclaimed).values(**values)).rowcount != 1:
                return None
        return replace(event, claims=event.claims + 1)

    def delivered(self, event: Event) -> bool:
        """Says that an event has arrived, whoever has it now -> whether that was not known."""
        return self._set((WebhookRow.id == event.id,), outcome="delivered", due_at=None, error=None)

    def failed(self, event: Event, error: str, retry_at: float | None) -> bool:
        """Says that a claimed event did not arrive -> whether it was still the caller's.

        Args:
            error: why, without anything that is secret.
            retry_at: when it may be sent again; None gives it up.
        """
        values: dict[str, Any] = {"attempts": event.attempts + 1, "due_at": retry_at, "error": error[:200]}
        if retry_at is None:
            values["outcome"] = "given_up"
        return self._set((WebhookRow.id == event.id, WebhookRow.claims == event.claims), **values)

    def _set(self, condition: tuple[Any, ...], **values: Any) -> bool:
        change = update(WebhookRow).where(*condition, WebhookRow.outcome.is_(None)).values(**values)
        with self.engine.begin() as connection:
            return connection.execute(change).rowcount == 1

    def depth(self) -> dict[str, int]:
        """How many events wait, were delivered and were given up, of those that are remembered."""
        state = func.coalesce(WebhookRow.outcome, "waiting")
        with self._reader.connect() as connection:
            rows = connection.execute(select(state, func.count()).group_by(state)).all()
        return {row[0]: row[1] for row in rows}
