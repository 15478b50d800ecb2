"""Tickets: one a job that has not ended, none lost for good; and the gateway's calls of the predictor."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from databases import Clock
from ray.exceptions import RayActorError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve.counters import Counters
from serve.database import open_database
from serve.dispatcher import Tickets, repeated, sweep
from serve.errors import ApiError
from serve.job import JobSettings
from serve.jobs import JobStore
from serve.remote import Busy, Changed, RemotePredictor, TooLate
from serve.services import Identity, Made, NotReady


class Renderers:
    """Calls that wait until they are let."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.let = asyncio.Event()

    async def work(self, ticket: str) -> bool:
        self.calls.append(ticket)
        await self.let.wait()
        return True


@pytest.fixture
def jobs(tmp_path: Path) -> JobStore:
    return JobStore(open_database(f"sqlite:///{tmp_path / 'x.sqlite'}"), JobSettings(lease_s=5), Clock())


async def ticked(tickets: Tickets) -> None:
    await tickets.tick()
    await asyncio.sleep(0.01)


def test_there_are_as_many_tickets_as_jobs(jobs: JobStore) -> None:
    async def run() -> None:
        renderers = Renderers()
        tickets = Tickets(jobs, renderers.work, most=3)
        await ticked(tickets)
        assert renderers.calls == []
        for _ in range(2):
            jobs.submit("a", {}, steps=1)
        for _ in range(3):
            await ticked(tickets)
        assert len(renderers.calls) == tickets.out == 2
        for _ in range(4):
            jobs.submit("a", {}, steps=1)
        await ticked(tickets)
        assert tickets.out == 3  # the most at once
        renderers.let.set()
        await asyncio.sleep(0.01)
        assert tickets.out == 0

    asyncio.run(run())


def test_the_ticket_of_a_lost_worker_is_struck_out(jobs: JobStore) -> None:
    """A renderer hangs with a job for good: when its lease runs out, the job gets another ticket."""

    async def run() -> None:
        renderers = Renderers()
        tickets = Tickets(jobs, renderers.work, most=8)
        jobs.submit("a", {}, steps=1)
        await ticked(tickets)
        assert jobs.claim(f"host:1:x:{renderers.calls[0]}") is not None
        clock = jobs.clock
        assert isinstance(clock, Clock)
        clock.now += 6
        lost = sweep(jobs, Counters(jobs.engine, every_s=None), lambda _: None)
        await ticked(tickets)
        assert len(renderers.calls) == 1  # it is still out
        tickets.strike(lost)
        await ticked(tickets)
        assert len(renderers.calls) == 2 and tickets.out == 1

    asyncio.run(run())


def test_a_ticket_that_dies_is_made_out_again(jobs: JobStore) -> None:
    async def run() -> None:
        calls = []

        async def work(ticket: str) -> bool:
            calls.append(ticket)
            raise RayActorError()

        tickets = Tickets(jobs, work, most=8)
        jobs.submit("a", {}, steps=1)
        await ticked(tickets)
        assert tickets.out == 1  # for a moment, so that a renderer that cannot start is not called all the time
        await asyncio.sleep(1.1)
        await ticked(tickets)
        assert len(calls) == 2

    asyncio.run(run())


def test_duties_outlive_their_errors() -> None:
    async def run() -> None:
        calls = []

        async def do() -> None:
            calls.append(1)
            raise RuntimeError

        task = asyncio.create_task(repeated("duty", 0.001, do))
        await asyncio.sleep(0.05)
        task.cancel()
        assert len(calls) > 3

    asyncio.run(run())


class Handle:
    """A deployment's handle whose methods do what a list says, one thing a call."""

    def __init__(self, *script: Any) -> None:
        self.script, self.calls = list(script), 0
        self.make = self.identity = self

    def remote(self, *_: Any) -> Coroutine[Any, Any, Any]:
        self.calls += 1
        step = self.script.pop(0)

        async def answer() -> Any:
            if isinstance(step, BaseException) and not isinstance(step, ApiError):
                raise step
            if isinstance(step, float):
                await asyncio.sleep(step)
            return step

        return answer()


MADE, WHO = Made(4, 10, "x"), Identity("base", "checkpoint")


def made(*script: Any) -> Any:
    return asyncio.run(RemotePredictor(Handle(*script), timeout_s=0.05).make({"prompt": "x"}, "x", WHO))


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ([BackPressureError(1, 1)], Busy), ([DeploymentUnavailableError(DeploymentID("x"))], NotReady),
        ([0.2], TooLate), ([RayActorError(), RayActorError()], NotReady), ([Changed("x")], Changed),
        ([Busy("x")], Busy),
    ],
)  # fmt: skip
def test_what_a_predictor_does_is_an_answer(script: list[Any], error: type[ApiError]) -> None:
    with pytest.raises(error) as found:
        made(*script)
    assert found.value.status in (503, 504)


def test_a_lost_predictor_is_asked_again() -> None:
    assert made(RayActorError(), MADE) == MADE


def test_what_is_loaded_is_known_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Handle(WHO, Changed("x"), Identity("base", "other"))
    predictor = RemotePredictor(handle, timeout_s=1)

    async def run() -> None:
        assert await predictor.identity() == WHO == await predictor.identity()
        with pytest.raises(Changed):
            await predictor.make({"prompt": "x"}, "x", WHO)
        assert (await predictor.identity()).checkpoint == "other"

    asyncio.run(run())
    assert handle.calls == 3


@pytest.mark.parametrize("step", [0.2, RayActorError(), DeploymentUnavailableError(DeploymentID("x"))])
def test_a_predictor_that_is_not_there_is_not_ready(step: Any) -> None:
    check: Callable[[], Any] = lambda: asyncio.run(RemotePredictor(Handle(step), 1, ready_s=0.05).identity())  # noqa: E731
    with pytest.raises(NotReady):
        check()
