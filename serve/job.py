"""A video job and what is said about it: its record, limits and times, pages of a list, answers to heartbeats."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from pydantic import Field

from p2e.config import Settings

__all__ = ["ENDED", "Beat", "Idempotency", "Job", "JobSettings", "Page", "Status", "Swept"]

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
ENDED = ("completed", "failed", "cancelled")


class JobSettings(Settings):
    """Limits and times of jobs.

    Attributes:
        queue_limit: jobs that may wait at once, of all owners.
        owner_limit: jobs of one owner that may wait or run at once, where its key says nothing else.
        lease_s: seconds without a heartbeat after which a job is taken from its renderer.
        attempts: how often a job is begun at most.
        affinity_wait_s: how long a job may be passed over for those whose LoRA a renderer already holds.
        keep_s: seconds that the video of an ended job is kept.
        remember_s: seconds that an ended job is known.
        idempotency_s: seconds that an idempotency key is known.
    """

    queue_limit: int = Field(default=256, ge=1)
    owner_limit: int = Field(default=64, ge=1)
    lease_s: float = Field(default=60, gt=0)
    attempts: int = Field(default=2, ge=1)
    affinity_wait_s: float = Field(default=30, ge=0)
    keep_s: float = Field(default=7 * 86_400, gt=0)
    remember_s: float = Field(default=30 * 86_400, gt=0)
    idempotency_s: float = Field(default=86_400, gt=0)


@dataclass(frozen=True)
class Job:
    """A job as it was when it was read; the fields are those of `JobRow`."""

    id: str
    owner: str
    status: Status
    request: dict[str, Any]
    effect_id: str | None
    steps: int
    steps_done: int
    attempt: int
    worker: str | None
    lease_until: float | None
    cancel_asked: int
    created_at: float
    sequence: int
    started_at: float | None
    ended_at: float | None
    expires_at: float | None
    error_code: str | None
    error_message: str | None
    artefact: str | None

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def progress(self) -> int:
        """Percent; 100 of what is complete alone."""
        if self.status == "completed":
            return 100
        return min(99, 100 * self.steps_done // max(1, self.steps))


@dataclass(frozen=True)
class Idempotency:
    """A client's key for one request, with the request's hash."""

    key: str
    body_hash: str

    @classmethod
    def of(cls, key: str, body: Mapping[str, Any]) -> "Idempotency":
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        return cls(key, hashlib.sha256(text.encode()).hexdigest())


@dataclass(frozen=True)
class Page:
    """Some jobs of a list, and whether more come after them."""

    jobs: list[Job]
    has_more: bool


class Beat(Enum):
    """What a heartbeat is answered with: go on; stop, the caller does not want it any more; stop, it is another's."""

    GO = "go"
    CANCEL = "cancel"
    LOST = "lost"


@dataclass(frozen=True)
class Swept:
    """What a sweep found: ids put back, ended as failed, ended as cancelled; artefacts of what was forgotten; the
    workers that were not heard of."""

    requeued: list[str]
    failed: list[str]
    cancelled: list[str]
    artefacts: list[str]
    workers: list[str]
