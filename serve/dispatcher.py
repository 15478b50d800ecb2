"""Brings renderers and jobs together, without Ray.

A ticket is a call of the renderers' deployment: "do the job whose turn it is". There are as many tickets as jobs that
have not ended, so that the calls that Serve sees, and scales renderers by, are the queue; a renderer at work has a call
under way, and is not stopped before it ends. Which job is done is settled in the database when a renderer has time, by
age and by the LoRAs that it holds. A ticket that is lost with its renderer loses nothing: the job's lease runs out, the
sweep puts it back and strikes out the ticket, and the job gets another one.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable

from pydantic import Field

from p2e.config import Settings
from serve.counters import Counters
from serve.jobs import JobStore
from serve.retention import RetentionSettings

__all__ = ["DispatcherSettings", "Tickets", "repeated", "sweep"]

LOG = logging.getLogger("p2e.dispatcher")


class DispatcherSettings(Settings):
    """How often what is done.

    Attributes:
        tick_s: tickets are made out for new jobs.
        tickets: at once, at most.
        sweep_s: lost jobs are put back, expired ones forgotten.
        deliver_s: webhooks are sent.
        retain_s: files that no record names are removed.
        retention: how long they are kept.
    """

    tick_s: float = Field(default=0.2, gt=0)
    tickets: int = Field(default=64, ge=1)
    sweep_s: float = Field(default=5, gt=0)
    deliver_s: float = Field(default=1, gt=0)
    retain_s: float = Field(default=600, gt=0)
    retention: RetentionSettings = RetentionSettings()


class Tickets:
    """The tickets that are out.

    Args:
        jobs: of the service.
        send: calls a renderer with a ticket -> whether it did a job.
        most: tickets at once.
    """

    def __init__(self, jobs: JobStore, send: Callable[[str], Awaitable[bool]], most: int) -> None:
        self.jobs, self._send, self._most = jobs, send, most
        self._out: dict[str, asyncio.Task[None]] = {}

    @property
    def out(self) -> int:
        return len(self._out)

    async def tick(self) -> None:
        """Makes out tickets for jobs that have none."""
        depth = await asyncio.to_thread(self.jobs.depth)
        wanted = min(self._most, depth.get("queued", 0) + depth.get("in_progress", 0))
        for _ in range(wanted - len(self._out)):
            ticket = secrets.token_hex(4)
            self._out[ticket] = asyncio.create_task(self._one(ticket))

    def strike(self, workers: Iterable[str]) -> None:
        """Forgets the tickets of lost workers; one may be stuck for good in a renderer that does not answer."""
        for worker in workers:
            self._out.pop(worker.rpartition(":")[2], None)

    async def _one(self, ticket: str) -> None:
        try:
            await self._send(ticket)
        except Exception as error:  # the renderer died, or is being replaced
            LOG.warning("a renderer was lost with a ticket: %s", type(error).__name__)
            await asyncio.sleep(1)
        finally:
            self._out.pop(ticket, None)


def sweep(jobs: JobStore, counters: Counters, remove: Callable[[str], None]) -> list[str]:
    """Puts back the jobs of lost renderers, ends those lost twice, and removes the files of what is forgotten -> the
    workers that were lost."""
    found = jobs.sweep()
    if found.requeued:
        LOG.warning("put back: %s", ", ".join(found.requeued))
        counters.add("p2e_videos_requeued", len(found.requeued))
    if found.failed:
        LOG.error("lost more than once: %s", ", ".join(found.failed))
        counters.add("p2e_videos", len(found.failed), status="failed", code="worker_died")
    if found.cancelled:
        counters.add("p2e_videos", len(found.cancelled), status="cancelled", code="")
    for artefact in found.artefacts:
        remove(artefact)
    return found.workers


async def repeated(name: str, every_s: float, do: Callable[[], Awaitable[None]]) -> None:
    """Does something again and again; an error is logged, and no reason to stop."""
    while True:
        try:
            await do()
        except Exception:
            LOG.exception("%s failed", name)
        await asyncio.sleep(every_s)
