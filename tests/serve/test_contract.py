"""What the service answers is what its document says, for requests of every kind: made up from the document, right and
wrong ones."""

import base64
import itertools
from collections.abc import Iterator
from typing import Any, cast

import pytest
import schemathesis
from contracts import a_video, document
from databases import Clock
from fastapi import FastAPI
from gateways import picture, services
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import negative_data_rejection
from starlette.testclient import TestClient

from serve.gateway import build_app
from serve.job import JobSettings, Status
from serve.keys import Keys, new_key
from serve.services import Services

MANY = 1_000_000
PICTURE = picture()
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
KEY, ENTRY = new_key("alice")
ACCEPTED = ["2xx", "3xx", "401", "404", "409"]
CONFIG = {
    "seed": 0,
    "generation": {"deterministic": True, "max-examples": 25, "mode": "all", "no-shrink": True},
    "checks": {"positive_data_acceptance": {"expected-statuses": ACCEPTED}},
    "operations": [
        # What a picture or a size is worth is not for a schema to say.
        {"include-path": "/v1/videos", "include-method": "POST",
         "checks": {"positive_data_acceptance": {"expected-statuses": [*ACCEPTED, "413", "415", "422"]}}},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Services:
    found = services(
        tmp_path_factory.mktemp("contract"), Clock(), jobs=JobSettings(queue_limit=MANY),
    )  # fmt: skip
    found.keys = Keys([ENTRY.model_copy(update={"jobs": MANY, "effects_per_minute": MANY})])
    found.settings = found.settings.model_copy(update={"events_s": 0.02, "delete_wait_s": 0.02})
    return found


class Late:
    """An application that is made after the tests were collected."""

    app: Any = None

    async def __call__(self, *arguments: Any) -> None:
        await self.app(*arguments)


LATE = Late()


@pytest.fixture(scope="module", autouse=True)
def gateway(made: Services) -> FastAPI:
    LATE.app = build_app(made)
    return LATE.app


@pytest.fixture(scope="module")
def states() -> Iterator[Status]:
    found: tuple[Status, ...] = ("queued", "in_progress", "completed", "failed", "cancelled")
    return itertools.cycle(found)


def an_effect(gateway: FastAPI, number: int) -> str:
    """The id of an effect of alice's; of ten different ones, one that was deleted is there again."""
    client = TestClient(gateway, headers={"authorization": f"Bearer {KEY}"})
    return client.post("/v1/effects", json={"prompt": f"effect {number % 10}"}).json()["id"]


requests = schemathesis.openapi.from_dict(document(), config=schemathesis.Config.from_dict(CONFIG))
requests.app = LATE


@requests.auth()
class Alice:
    """Her key, with every request but those that are sent without one to be refused."""

    def get(self, _case: schemathesis.Case, _context: schemathesis.AuthContext) -> str:
        return f"Bearer {KEY}"

    def set(self, case: schemathesis.Case, data: str, _context: schemathesis.AuthContext) -> None:
        case.headers["Authorization"] = data


turns = itertools.count()


@requests.parametrize()
@settings(deadline=None, suppress_health_check=SLOW)
def test_requests_of_every_kind(
    case: schemathesis.Case, made: Services, gateway: FastAPI, states: Iterator[Status]
) -> None:
    turn = next(turns)
    if turn % 2:
        if "job_id" in case.path_parameters:
            case.path_parameters["job_id"] = a_video(made, next(states))
        elif "name" in case.path_parameters:
            case.path_parameters["name"] = an_effect(gateway, turn)
    positive = case.meta is not None and case.meta.generation.mode.is_positive
    excluded, body = [], cast(Any, case).body
    if positive and turn % 2 and isinstance(body, dict) and "input_reference" in body:
        form = case.media_type == "multipart/form-data"
        url = "data:image/png;base64," + base64.b64encode(PICTURE).decode()
        cast(Any, case).body = body | {"input_reference": PICTURE if form else {"image_url": url}}
        if form:  # bytes are not what a schema of text takes for valid
            excluded.append(negative_data_rejection)
    if positive and case.operation.method == "post":
        case.headers["idempotency-key"] = f"key-{turn}"
    case.call_and_validate(excluded_checks=excluded)
