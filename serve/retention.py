"""Removes files that nobody asks for any more, and that no record knows.

A file is written before its record, and a record goes before its file: whoever dies in between leaves a file that no
row names. Such files are found by looking, and are told from those whose row is about to be written by their age alone.
"""

from dataclasses import dataclass

from pydantic import Field
from sqlalchemy import or_, select

from p2e.config import Settings
from serve.artefacts import ArtefactStore
from serve.database import READ_ONLY, EffectRow, JobRow
from serve.effects import EffectStore
from serve.job import ENDED
from serve.jobs import JobStore

__all__ = ["Removed", "Retention", "RetentionSettings"]


class RetentionSettings(Settings):
    """How long things are kept that nobody has asked to keep.

    Attributes:
        grace_s: seconds that a file which no record knows is left alone, for it may be about to be recorded; also that
            a picture outlives its job.
        effects_keep_s: seconds after which an effect that nobody has used goes; None keeps it until it is deleted.
    """

    grace_s: float = Field(default=3600, ge=60)
    effects_keep_s: float | None = Field(default=None, ge=3600)


@dataclass(frozen=True)
class Removed:
    """What a sweep took away: files of effects that expired, files without a record, halves of files."""

    expired: list[str]
    orphans: list[str]
    parts: list[str]


class Retention:
    """Any number may sweep at once, and any of them may die.

    Args:
        jobs, effects: that name files, of one database.
        artefacts: the files.
    """

    def __init__(
        self,
        jobs: JobStore,
        effects: EffectStore,
        artefacts: ArtefactStore,
        settings: RetentionSettings = RetentionSettings(),  # noqa: B008  frozen
    ) -> None:
        self.jobs, self.effects, self.artefacts, self.settings = jobs, effects, artefacts, settings
        self._reader = jobs.engine.execution_options(**READ_ONLY)

    def sweep(self) -> Removed:
        """Removes what is to go -> its names."""
        expired: list[str] = []
        if self.settings.effects_keep_s is not None:
            expired = self.effects.expire(self.settings.effects_keep_s)
        # Files first, then records: a file that is recorded meanwhile is found among the records.
        names = self.artefacts.names()
        needed, working = self._needed()
        unknown = [name for name in names if name not in needed and not _of_any(name, working)]
        gone = self.artefacts.older_than(self.settings.grace_s, [name for name in unknown if name not in expired])
        for name in (*expired, *gone):
            self.artefacts.remove(name)
        return Removed(expired, gone, self.artefacts.remove_parts(self.settings.grace_s))

    def _needed(self) -> tuple[set[str], set[str]]:
        """Names of files that some record needs, and of jobs that have not ended."""
        recent = JobRow.ended_at > self.jobs.clock() - self.settings.grace_s
        using = select(JobRow.id, JobRow.status, JobRow.request).where(or_(JobRow.status.not_in(ENDED), recent))
        needed: set[str | None] = set()
        with self._reader.connect() as connection:
            # In this order: what a job under way has written becomes the job's, and never the other way round.
            open_jobs = connection.execute(using).all()
            needed.update(connection.execute(select(JobRow.artefact).where(JobRow.artefact.is_not(None))).scalars())
            needed.update(connection.execute(select(EffectRow.artefact)).scalars())
        for row in open_jobs:
            needed.add(row.request.get("picture"))
            if row.status not in ENDED:
                needed.add(row.request.get("lora"))
        return {name for name in needed if name is not None}, {row.id for row in open_jobs if row.status not in ENDED}


def _of_any(name: str, jobs: set[str]) -> bool:
    """Whether a file is what a job under way has made: named ID-ATTEMPT.mp4, it is recorded when the job ends."""
    return name.partition(".")[0].partition("-")[0] in jobs
