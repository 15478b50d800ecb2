"""One event for every end of a job, and for nothing else; and who may name a receiver in a request."""

import base64
import contextlib
import json
import random
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from databases import Clock
from gateways import picture, services, tokens
from sqlalchemy import select
from starlette.testclient import TestClient

from p2e.errors import ConfigError
from serve.database import WebhookRow, open_database
from serve.errors import Conflict
from serve.gateway import build_app
from serve.job import Job, JobSettings
from serve.jobs import JobStore
from serve.keys import ApiKey, Keys, new_secret
from serve.services import Services
from serve.webhook_urls import WebhookSettings

URL = "https://hooks.example.com/in"
REQUEST = {"prompt": "a fox", "clip": {"frames": 9, "fps": 8, "width": 48, "height": 32},
           "webhook": {"url": URL, "model": "world"}}  # fmt: skip


def events(store: JobStore) -> list[tuple[str, str]]:
    """Jobs and what their events say, whether or not they are the only ones."""
    with store.engine.connect() as connection:
        rows = connection.execute(select(WebhookRow.job_id, WebhookRow.body)).all()
    return sorted((row.job_id, json.loads(row.body)["type"]) for row in rows)


def ended(jobs: list[Job]) -> list[tuple[str, str]]:
    return sorted((job.id, f"video.{job.status}") for job in jobs if job.ended)


def test_every_way_to_an_end_has_one_event(database: str) -> None:
    clock = Clock()
    store = JobStore(open_database(database), JobSettings(lease_s=60, attempts=1), clock)
    jobs = [store.submit("a", REQUEST, steps=4)[0] for _ in range(7)]
    silent = store.submit("a", {key: REQUEST[key] for key in ("prompt", "clip")}, steps=4)[0]
    store.cancel(jobs[0].id, "a")
    claimed = [store.claim("r") for _ in range(6)]
    for job, how in zip(claimed, ("complete", "fail", "stop", "lost", "lost and cancelled", "alive"), strict=True):
        assert job is not None and events(store) == ended(store.page("a").jobs)
        if how == "complete":
            assert store.complete(job, "x.mp4") and not store.complete(job, "x.mp4") and not store.fail(job, "x", "y")
        elif how == "fail":
            assert store.fail(job, "oom", "no memory") and not store.stop(job)
        elif how == "stop":
            store.cancel(job.id, "a")
            assert store.stop(job) and store.cancel(job.id, "a").status == "cancelled"
        elif how == "lost and cancelled":
            store.cancel(job.id, "a")
        elif how == "alive":
            clock.now += 61
            store.beat(job, 1)
    store.sweep()
    store.sweep()
    found = {status: [i for i, job in enumerate(jobs) if (job.id, f"video.{status}") in events(store)]
             for status in ("completed", "failed", "cancelled")}  # fmt: skip
    assert found == {"completed": [1], "failed": [2, 4], "cancelled": [0, 3, 5]} and len(events(store)) == 6
    assert store.cancel(silent.id, "a").ended and len(events(store)) == 6  # nobody is to be told
    for job in store.page("a").jobs:
        if job.ended:
            store.delete(job.id, "a")
    assert len(events(store)) == 6  # they are sent all the same


def test_an_end_that_fails_leaves_no_event_and_the_other_way_round(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = JobStore(open_database(database))
    job = store.submit("a", REQUEST, steps=4)[0]

    def broken(*_: object) -> None:
        raise RuntimeError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("serve.outbox.video_object", broken)
        with pytest.raises(RuntimeError):
            store.cancel(job.id, "a")
    assert store.get(job.id).status == "queued" and events(store) == []
    assert store.cancel(job.id, "a").ended and len(events(store)) == 1


def test_ends_that_race_have_one_event(database: str) -> None:
    clock = Clock()
    settings = JobSettings(lease_s=60, queue_limit=1000, owner_limit=1000)
    store = JobStore(open_database(database), settings, clock)
    names = [store.submit("a", REQUEST, steps=4)[0].id for _ in range(24)]
    claimed = [job for _ in range(16) if (job := store.claim("r")) is not None]
    clock.now += 61  # so that sweepers take them, too
    together = threading.Barrier(6)

    def go(index: int) -> int:
        chance = random.Random(index)
        calls = (lambda job: store.complete(job, "x.mp4"), lambda job: store.fail(job, "x", "y"), store.stop)
        together.wait()
        if index < 3:
            return sum(chance.choice(calls)(job) for job in chance.sample(claimed, len(claimed)))
        if index == 5:
            return sum(len(swept.failed) + len(swept.cancelled) for swept in (store.sweep() for _ in range(5)))
        for name in chance.sample(names, len(names)):
            with contextlib.suppress(Conflict):
                store.cancel(name, "a")
        return 0

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(go, range(6)))
    jobs = store.page("a", limit=100).jobs
    waited = [job for job in jobs if job.status == "cancelled" and job.attempt == 0]
    assert events(store) == ended(jobs) and waited
    clock.now += 61
    store.sweep()
    for job in store.page("a", limit=100).jobs:
        if not job.ended:
            store.cancel(job.id, "a")
    assert events(store) == ended(store.page("a", limit=100).jobs) and len(events(store)) == 24


@pytest.fixture
def made(tmp_path: Path) -> Services:
    found = services(tmp_path, Clock())
    found.webhooks = WebhookSettings(hosts=("hooks.example.com",))
    return found


def post(made: Services, headers: Mapping[str, str] | None = None, **fields: Any) -> Any:
    client = TestClient(build_app(made), headers={"authorization": tokens["alice"]})
    return client.post("/v1/videos", data={"prompt": "a fox", **fields}, headers=headers,
                       files={"input_reference": ("x.png", picture(), "image/png")})  # fmt: skip


def refused(answer: Any, message: str) -> None:
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error["param"] == "webhook_url" and message in error["message"] and "\n" not in error["message"]


def test_a_request_names_who_is_told(made: Services) -> None:
    answer = post(made, webhook_url=URL)
    assert answer.status_code == 200 and "webhook" not in answer.text
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    client = TestClient(build_app(made), headers={"authorization": tokens["alice"]})
    body = {"prompt": "a fox", "input_reference": {"image_url": url}}
    assert client.post("/v1/videos", json={**body, "webhook_url": URL}).status_code == 200
    refused(client.post("/v1/videos", json={**body, "webhook_url": 3}), "string")
    for job in made.jobs.page("alice").jobs:
        assert client.post(f"/v1/videos/{job.id}/cancel").json()["status"] == "cancelled"
        assert job.request["webhook"] == {"url": URL, "model": "world"}
        shown = client.get(f"/v1/videos/{job.id}").json()
        with made.jobs.engine.connect() as connection:
            sent = connection.execute(select(WebhookRow.body).where(WebhookRow.job_id == job.id)).scalar_one()
        assert json.loads(sent)["data"] == shown
    assert 'p2e_webhooks{outcome="waiting"} 2.0' in client.get("/metrics").text


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "not a plain URL"), ("http://hooks.example.com/", "give an https"), ("https://evil.com/", "allowed hosts"),
        ("https://hooks.example.com:22/", "this port"), ("https://hooks.example.com\\@evil.com/", "not a plain URL"),
        ("https://169.254.169.254/latest", "allowed hosts"), ("https://2130706433/", "not a plain URL"),
        ("file:///etc/passwd", "not a plain URL"), ("x" * 2049, "2048"),
    ],
)  # fmt: skip
def test_who_may_not_be_told_is_refused(made: Services, url: str, message: str) -> None:
    refused(post(made, webhook_url=url), message)
    assert made.jobs.page("alice").jobs == [] and made.artefacts.names() == []


def test_without_a_secret_nobody_is_told(made: Services) -> None:
    entries = [key.model_copy(update={"webhook_secret": None}) for key in made.keys._keys]
    made.keys = Keys(entries)
    refused(post(made, webhook_url=URL), "ask the operator for a webhook_secret")
    made.keys = Keys()  # an open service has one for all
    refused(post(made, webhook_url=URL), "ask the operator for a webhook_secret")
    made.webhooks = made.webhooks.model_copy(update={"secret": new_secret()})
    assert post(made, webhook_url=URL).status_code == 200
    made.keys = Keys(entries)  # but it is nobody's where there are keys
    refused(post(made, webhook_url=URL), "ask the operator")
    made.webhooks = WebhookSettings()
    refused(post(made, webhook_url=URL), "allowed hosts")


def test_another_receiver_is_another_request(made: Services) -> None:
    key = {"idempotency-key": "k"}
    first = post(made, key, webhook_url=URL).json()
    assert post(made, key, webhook_url=URL).json() == first
    for fields in ({}, {"webhook_url": URL + "/other"}):
        answer = post(made, key, **fields)
        assert answer.status_code == 422 and answer.json()["error"]["code"] == "idempotency_key_reused"


def test_a_secret_of_a_key_is_checked_and_not_shown() -> None:
    values = {"name": "a", "sha256": "0" * 64}
    secret = new_secret()
    key = ApiKey.parse({**values, "webhook_secret": secret})
    assert secret not in repr(key) and Keys([key]).webhook_secret("a") == secret
    assert Keys([key]).webhook_secret("b", secret) is None and Keys().webhook_secret("local") is None
    wrongs = ["", "whsec_", "hunter2", *("whsec_" + "A" * count for count in (20, 31, 100)), secret + "\n"]
    for wrong in wrongs:
        with pytest.raises(ConfigError, match="webhook_secret: Value error, not a webhook secret") as error:
            ApiKey.parse({**values, "webhook_secret": wrong})
        assert "hunter2" not in str(error.value)
