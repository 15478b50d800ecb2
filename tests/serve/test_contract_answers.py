"""The document is valid and whole, and each status that it names is answered as it says."""

import json
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from contracts import a_video, document
from databases import Clock
from gateways import FakePredictor, picture, services, tokens
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR
from starlette.testclient import TestClient

from p2e.errors import OutputError
from serve import answers
from serve.edge import BodyTooSlow, Edge
from serve.errors import Busy, StorageFull, TooLate
from serve.gateway import build_app
from serve.job import JobSettings
from serve.services import Services

DOCUMENT = document()
PUBLIC = {"/healthz", "/readyz", "/metrics", "/v1/models"}
OPERATIONS = [(path, method, found) for path, kinds in DOCUMENT["paths"].items() for method, found in kinds.items()]


def test_the_document_is_valid() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    assert [str(error) for error in OPENAPI_31_VALIDATOR.iter_errors(DOCUMENT)] == []
    schemathesis.openapi.from_dict(DOCUMENT).validate()
    references = {part.split('"')[0] for part in json.dumps(DOCUMENT).split('"#/components/schemas/')[1:]}
    assert references == set(DOCUMENT["components"]["schemas"])


@pytest.mark.parametrize(("path", "method", "found"), OPERATIONS, ids=[f"{m} {p}" for p, m, _ in OPERATIONS])
def test_every_route_says_what_it_is(path: str, method: str, found: dict[str, Any]) -> None:
    assert found["summary"] and found["description"] and found["tags"]
    assert found.get("security") == (None if path in PUBLIC else [{"key": []}])
    errors = {status for status in found["responses"] if int(status) >= 400}
    assert errors >= ({"500"} if path in PUBLIC else {"401", "500"})
    for status in errors - {"416"}:
        schema = found["responses"][status]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/ErrorAnswer"}
    if method == "post" and "{" not in path:
        assert found["requestBody"]["required"] and "Idempotency-Key" in str(found["parameters"]).title()
    assert all(answer["description"] for answer in found["responses"].values())


class Checked:
    """A caller whose answers are held against the document.

    Attributes:
        met: paths, methods and statuses that were answered.
    """

    def __init__(self, made: Services, name: str = "alice") -> None:
        app = Edge(build_app(made), max_body_bytes=100_000, body_timeout_s=5)  # pyright: ignore[reportArgumentType]
        self.client = TestClient(app, headers={"authorization": tokens[name]}, raise_server_exceptions=False)
        self.operations = schemathesis.openapi.from_dict(DOCUMENT)
        self.met: set[tuple[str, str, str]] = set()

    def __call__(self, status: int, method: str, path: str, item: str = "", **given: Any) -> Any:
        at = path.replace("{job_id}", item).replace("{name}", item)
        answer = self.client.request(method, at, **given)
        assert answer.status_code == status, answer.text
        self.operations[path][method].validate_response(answer)
        self.met.add((path, method.lower(), str(status)))
        kind = DOCUMENT["paths"][path][method.lower()]["responses"][str(status)].get("content", {})
        if answer.content and "application/json" in kind:
            model = kind["application/json"]["schema"]["$ref"].rpartition("/")[2]
            getattr(answers, model).model_validate_json(answer.content, strict=True)
        return answer


@pytest.fixture
def made(tmp_path: Path) -> Services:
    found = services(tmp_path, Clock(), jobs=JobSettings(), limits={"jobs": 1, "effects_per_minute": 4})
    found.settings = found.settings.model_copy(update={"events_s": 0.02, "delete_wait_s": 0.02})
    return found


def test_each_status_that_is_named_is_answered(made: Services) -> None:
    ask, predictor = Checked(made), made.predictor
    assert isinstance(predictor, FakePredictor)
    ask_for_effects(ask, made)
    ask_for_videos(ask, made)
    for path in ("/v1/models", "/healthz", "/readyz", "/metrics"):
        ask(200, "GET", path)
    fields, files = {"prompt": "a fox", "effect_prompt": "new"}, {"input_reference": ("x.png", picture())}
    made.effects.clock.now += 100  # type: ignore[attr-defined]
    for status, error in (
        (503, Busy("busy", retry_after_s=1)), (504, TooLate("late", retry_after_s=1)),
        (507, StorageFull("full", retry_after_s=1)), (500, OutputError("/secret")),
    ):  # fmt: skip
        predictor.error = error
        ask(status, "POST", "/v1/effects", json={"prompt": "new"})
        ask(status, "POST", "/v1/videos", data=fields, files=files)
    predictor.loaded = False
    ask(503, "GET", "/readyz")
    break_database(made)
    for path, method, _ in OPERATIONS:
        if (path not in ("/healthz", "/v1/models") and method != "post") or path.endswith("cancel"):
            ask(500, method.upper(), path, "x") if path != "/readyz" else None
    named = {(path, method, status) for path, method, found in OPERATIONS for status in found["responses"]}
    # A body that comes slowly needs a connection; the routes that cannot fail have nothing to break.
    unmet = {(path, "post", "408") for path in ("/v1/effects", "/v1/videos")}
    unmet |= {(path, "get", "500") for path in ("/healthz", "/readyz", "/v1/models")}
    assert BodyTooSlow.status == 408 and named - ask.met == unmet


def break_database(made: Services) -> None:
    made.jobs.engine.dispose()
    with made.jobs.engine.begin() as connection:
        for table in ("jobs", "effect_owners"):
            connection.exec_driver_sql(f"DROP TABLE {table}")


def ask_for_effects(ask: Checked, made: Services) -> None:
    path, one, file = "/v1/effects", "/v1/effects/{name}", "/v1/effects/{name}/content"
    effect = ask(201, "POST", path, json={"prompt": "it melts"}, headers={"idempotency-key": "k"}).json()["id"]
    blend = [{"effect_id": effect, "weight": 0.5}]
    ask(201, "POST", path, json={"blend": blend, "strength": 2})
    ask(422, "POST", path, json={"prompt": "it burns"}, headers={"idempotency-key": "k"})
    ask(422, "POST", path, json={"prompt": " "})
    ask(404, "POST", path, json={"blend": [{"effect_id": "eff_" + "0" * 32, "weight": 1}]})
    ask(400, "POST", path, content=b"{", headers={"content-type": "application/json"})
    ask(415, "POST", path, content=b"x", headers={"content-type": "text/plain"})
    ask(413, "POST", path, content=b"x" * 200_000)
    for number in range(2):
        ask(201, "POST", path, json={"prompt": f"effect {number}"})
    ask(429, "POST", path, json={"prompt": "one too many"})
    ask(200, "GET", path, params={"limit": 1})
    ask(404, "GET", path, params={"after": "eff_"})
    ask(422, "GET", path, params={"limit": 0})
    ask(200, "GET", one, effect)
    ask(404, "GET", one, "eff_x")
    ask_for_a_file(ask, file, effect)
    queued = made.jobs.submit("alice", {"clip": {}}, steps=1, effect_id=effect)[0]
    ask(409, "DELETE", one, effect)
    made.jobs.cancel(queued.id, "alice")
    made.jobs.delete(queued.id, "alice")
    ask(200, "DELETE", one, effect)
    ask(404, "DELETE", one, effect)
    for method, where in (("POST", path), ("GET", path), ("GET", one), ("GET", file), ("DELETE", one)):
        ask(401, method, where, effect, headers={"authorization": "Bearer wrong"})


def ask_for_a_file(ask: Checked, path: str, item: str) -> None:
    tag = ask(200, "GET", path, item).headers["etag"]
    ask(206, "GET", path, item, headers={"range": "bytes=1-3"})
    ask(304, "GET", path, item, headers={"if-none-match": tag})
    ask(416, "GET", path, item, headers={"range": "bytes=999999-"})
    ask(404, "GET", path, "x")


def ask_for_videos(ask: Checked, made: Services) -> None:
    path, one = "/v1/videos", "/v1/videos/{job_id}"
    file, cancel, events = f"{one}/content", f"{one}/cancel", f"{one}/events"
    fields, files = {"prompt": "a fox"}, {"input_reference": ("x.png", picture(), "image/png")}
    ask(200, "POST", path, data=fields, files=files)
    ask(429, "POST", path, data=fields, files=files)
    ask(422, "POST", path, data=fields | {"seed": "-1"}, files=files)
    ask(404, "POST", path, data=fields | {"effect_id": "eff_" + "0" * 32}, files=files)
    ask(400, "POST", path, content=b"{", headers={"content-type": "application/json"})
    ask(415, "POST", path, data=fields, files={"input_reference": ("x.png", b"GIF89a")})
    ask(413, "POST", path, content=b"x" * 200_000)
    states = {state: a_video(made, state) for state in ("completed", "failed", "cancelled", "in_progress", "queued")}
    ask(200, "GET", path)
    ask(404, "GET", path, params={"after": "x"})
    ask(422, "GET", path, params={"order": "up"})
    for item in states.values():
        ask(200, "GET", one, item)
        ask(200, "GET", events, item)
    for method, where in (("GET", one), ("GET", events), ("POST", cancel), ("DELETE", one)):
        ask(404, method, where, "video_x")
    ask_for_a_file(ask, file, states["completed"])
    ask(409, "GET", file, states["failed"])
    ask(422, "GET", file, states["completed"], params={"variant": "thumbnail"})
    ask(409, "POST", cancel, states["completed"])
    ask(409, "DELETE", one, states["in_progress"])
    ask(200, "POST", cancel, states["queued"])
    ask(200, "DELETE", one, states["queued"])
    made.jobs.clock.now += 8 * 86_400  # type: ignore[attr-defined]
    made.jobs.sweep()
    ask(410, "GET", file, states["completed"])
    for method, where in (("POST", path), ("GET", path), ("GET", one), ("GET", file), ("GET", events),
                          ("POST", cancel), ("DELETE", one)):  # fmt: skip
        ask(401, method, where, "x", headers={"authorization": ""})
