"""Effects that several ask for at once are made once; keys that come with requests for effects."""

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from databases import Clock
from gateways import FakePredictor, Overloaded, services, tokens
from starlette.testclient import TestClient

from serve.database import open_database
from serve.errors import KeyReused
from serve.flights import Flights
from serve.gateway import build_app
from serve.idempotency import claim_key
from serve.job import Idempotency
from serve.services import Identity, Made, Services

OWNER: contextvars.ContextVar[str] = contextvars.ContextVar("owner")


class Held(FakePredictor):
    """Predicts when it is let."""

    def __init__(self, inner: FakePredictor) -> None:
        super().__init__(inner.artefacts)
        self.asked, self.let = 0, asyncio.Event()

    async def make(self, source: Any, artefact: str, identity: Identity) -> Made:
        self.asked += 1
        await self.let.wait()
        return await super().make(source, artefact, identity)


class World:
    """A gateway in this loop, and callers of it."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        self.services: Services = services(folder, Clock(), limits=limits)
        assert isinstance(self.services.predictor, FakePredictor)
        self.predictor = self.services.predictor = Held(self.services.predictor)
        self.transport = httpx.ASGITransport(build_app(self.services))

    async def make(self, owner: str = "alice", prompt: str = "it melts", key: str | None = None) -> httpx.Response:
        headers = {"authorization": tokens[owner]} | ({"idempotency-key": key} if key else {})
        async with httpx.AsyncClient(transport=self.transport, base_url="http://gateway", headers=headers) as client:
            return await client.post("/v1/effects", json={"prompt": prompt})

    async def under_way(self, count: int = 1) -> None:
        async with asyncio.timeout(10):
            while self.predictor.asked < count:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)  # so that the others have come, too


def test_many_callers_wait_for_one_prediction(tmp_path: Path) -> None:
    async def go() -> None:
        world = World(tmp_path, effects_per_minute=1)
        calls = [asyncio.create_task(world.make(owner)) for owner in ["alice", "bob"] * 8]
        other = asyncio.create_task(world.make("bob", "it burns"))
        await world.under_way(2)
        world.predictor.let.set()
        answers = await asyncio.gather(*calls)
        assert {answer.status_code for answer in answers} == {201} and (await other).status_code == 201
        assert len({answer.text for answer in answers}) == 1 and world.predictor.asked == 2
        assert len(world.services.artefacts.names()) == 2
        for owner, count in (("alice", 1), ("bob", 2)):
            assert len(world.services.effects.page(owner).effects) == count
        assert (await world.make("alice", "another")).status_code == 429  # each has its own count

    asyncio.run(go())


@pytest.mark.parametrize("leaver", [0, 1])
def test_who_leaves_stops_nobody_else(tmp_path: Path, leaver: int) -> None:
    async def go() -> None:
        world = World(tmp_path)
        first = asyncio.create_task(world.make("alice"))
        await world.under_way()
        calls = [first, asyncio.create_task(world.make("bob"))]
        await asyncio.sleep(0.1)
        calls[leaver].cancel()
        with pytest.raises(asyncio.CancelledError):
            await calls[leaver]
        world.predictor.let.set()
        assert (await calls[1 - leaver]).status_code == 201 and world.predictor.asked == 1

    asyncio.run(go())


def test_an_effect_whose_caller_left_is_there_for_the_next(tmp_path: Path) -> None:
    async def go() -> None:
        world = World(tmp_path)
        alone = asyncio.create_task(world.make())
        await world.under_way()
        alone.cancel()
        world.predictor.let.set()
        assert (await world.make()).status_code == 201 and world.predictor.asked == 1
        assert len(world.services.artefacts.names()) == 1

    asyncio.run(go())


def test_who_looked_too_early_does_not_have_it_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        world, late = World(tmp_path), threading.Event()
        recent = world.services.effects.recent

        def slow(owner: str, seconds: float) -> int:
            assert owner == "alice" or late.wait(10)
            return recent(owner, seconds)

        monkeypatch.setattr(world.services.effects, "recent", slow)
        calls = [asyncio.create_task(world.make("bob")), asyncio.create_task(world.make("alice"))]
        await world.under_way()
        world.predictor.let.set()
        assert (await calls[1]).status_code == 201  # bob has not found it in the store, and finds no flight
        late.set()
        assert (await calls[0]).json() == (await calls[1]).json() and world.predictor.asked == 1

    asyncio.run(go())


def test_an_error_reaches_all_and_stays_with_nobody(tmp_path: Path) -> None:
    async def go() -> None:
        world = World(tmp_path)
        world.predictor.error = Overloaded("busy", retry_after_s=3)
        calls = [asyncio.create_task(world.make(owner)) for owner in ("alice", "bob", "alice")]
        await world.under_way()
        world.predictor.let.set()
        answers = await asyncio.gather(*calls)
        assert [(answer.status_code, answer.headers["retry-after"]) for answer in answers] == [(503, "3")] * 3
        assert world.predictor.asked == 1 and len({answer.text for answer in answers}) == 1
        world.predictor.error = None
        assert (await world.make()).status_code == 201

    asyncio.run(go())


def test_a_flight_is_of_no_request() -> None:
    """A server that stops all that a request began does not find it in the request's context."""

    async def go() -> None:
        flights: Flights[str] = Flights()
        OWNER.set("alice")

        async def run() -> str:
            await asyncio.sleep(0)
            return OWNER.get("nobody")

        found = await asyncio.gather(*(flights.join("x", run) for _ in range(3)), flights.join("y", run))
        assert found == [("nobody", True), ("nobody", False), ("nobody", False), ("nobody", True)]
        assert len(flights) == 0
        waiting = asyncio.create_task(flights.join("x", run))
        await asyncio.sleep(0)
        waiting.cancel()
        assert (await flights.join("x", run))[1] is False

    asyncio.run(go())


def test_a_key_of_an_effect(tmp_path: Path) -> None:
    made = services(tmp_path, clock := Clock())
    alice, bob = (TestClient(build_app(made), headers={"authorization": tokens[name]}) for name in ("alice", "bob"))

    def post(client: TestClient, key: str, **body: Any) -> Any:
        return client.post("/v1/effects", json=body, headers={"idempotency-key": key})

    first = post(alice, "k", prompt="it melts")
    assert first.status_code == 201 and post(alice, "k", prompt="it melts").json() == first.json()
    assert post(alice, "k", prompt=" it melts ", strength=1).json() == first.json()  # the same in other words
    for body in ({"prompt": "it burns"}, {"prompt": "it melts", "strength": 0.5},
                 {"blend": [{"effect_id": first.json()["id"], "weight": 1.0}]}):  # fmt: skip
        answer = post(alice, "k", **body)
        assert answer.status_code == 422 and answer.json()["error"]["code"] == "idempotency_key_reused"
    assert len(made.effects.page("alice").effects) == 1
    assert post(bob, "k", prompt="it burns").status_code == 201  # another's key is another key
    assert post(alice, "other", prompt="it burns").status_code == 201
    assert alice.delete(f"/v1/effects/{first.json()['id']}").is_success
    assert post(alice, "k", prompt="it melts").json()["id"] == first.json()["id"]  # made again, the same
    clock.now += made.jobs.settings.idempotency_s + 1
    assert post(alice, "k", prompt="it burns").status_code == 201
    for wrong in ("", "x" * 257, "a b"):
        assert post(alice, wrong, prompt="it melts").status_code == 422


def test_a_key_of_a_failed_request_is_still_that_requests(tmp_path: Path) -> None:
    made = services(tmp_path, Clock())
    alice = TestClient(build_app(made), headers={"authorization": tokens["alice"], "idempotency-key": "k"})
    assert isinstance(made.predictor, FakePredictor)
    made.predictor.error = Overloaded("busy")
    assert alice.post("/v1/effects", json={"prompt": "it melts"}).status_code == 503
    made.predictor.error = None
    assert alice.post("/v1/effects", json={"prompt": "it burns"}).status_code == 422
    assert alice.post("/v1/effects", json={"prompt": "it melts"}).status_code == 201
    assert alice.post("/v1/effects", json={"prompt": ""}).json()["error"]["param"] == "prompt"


def test_of_requests_that_race_for_a_key_one_wins(database: str) -> None:
    engine = open_database(database)

    def claim(index: int) -> int | None:
        try:
            claim_key(engine, "a", "effects", Idempotency.of("k", {"x": index % 4}), "eff", now=1000.0, keep_s=10)
        except KeyReused:
            return None
        return index % 4

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(claim, range(32)))
    winners = {index for index in found if index is not None}
    assert len(winners) == 1 and len([index for index in found if index is not None]) == 8
