"""The gateway over real stores: effects, videos, errors in one envelope, other owners' things."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from databases import Clock
from gateways import FakePredictor, Overloaded, picture, services, tokens
from PIL import Image
from starlette.testclient import TestClient

from p2e.errors import OutputError
from serve.edge import Edge
from serve.gateway import build_app
from serve.job import JobSettings
from serve.services import Services


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def made(tmp_path: Path, clock: Clock) -> Services:
    return services(tmp_path, clock, jobs=JobSettings(queue_limit=5), limits={"jobs": 3, "effects_per_minute": 4})


@pytest.fixture
def alice(made: Services) -> TestClient:
    return caller(made, "alice")


@pytest.fixture
def bob(made: Services, alice: TestClient) -> TestClient:
    return caller(made, "bob")


def caller(made: Services, name: str) -> TestClient:
    app = Edge(build_app(made), max_body_bytes=200_000)  # pyright: ignore[reportArgumentType]
    return TestClient(app, headers={"authorization": tokens[name]}, raise_server_exceptions=False)


def predictor(made: Services) -> FakePredictor:
    assert isinstance(made.predictor, FakePredictor)
    return made.predictor


def new_effect(client: TestClient, prompt: str = "it melts", **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/effects", json={"prompt": prompt, **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


def new_video(client: TestClient, headers: dict[str, str] | None = None, **fields: Any) -> Any:
    data = {"prompt": "a fox", **{name: str(value) for name, value in fields.items()}}
    return client.post("/v1/videos", data=data, files={"input_reference": ("x.png", picture(), "image/png")},
                       headers=headers)  # fmt: skip


def error_of(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"} and set(answer.json()["error"]) == {"message", "type", "param", "code"}
    return answer.json()["error"]


def test_an_effect_is_made_once(made: Services, alice: TestClient, bob: TestClient) -> None:
    first = new_effect(alice)
    assert first["object"] == "effect" and first["prompt"] == "it melts" and first["lora"]["rank"] == 4
    assert new_effect(alice) == first and new_effect(bob) == first and len(predictor(made).made) == 1
    assert new_effect(alice, strength=0.5)["id"] != first["id"]
    assert new_effect(alice, strength=-0.0)["id"] == new_effect(alice, strength=0.0)["id"]
    answer = alice.get(f"/v1/effects/{first['id']}/content")
    assert len(answer.content) == first["lora"]["bytes"] and answer.headers["etag"] == f'"{first["lora"]["sha256"]}"'
    again = alice.get(f"/v1/effects/{first['id']}/content", headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304
    part = alice.get(f"/v1/effects/{first['id']}/content", headers={"range": "bytes=3-9"})
    assert part.status_code == 206 and part.content == answer.content[3:10]


def test_effects_are_listed_and_deleted(made: Services, alice: TestClient, bob: TestClient) -> None:
    names = [new_effect(alice, f"effect {i}")["id"] for i in range(3)]
    shared = new_effect(bob, "effect 0")["id"]
    assert shared == names[0]
    found = alice.get("/v1/effects", params={"limit": 2}).json()
    assert [e["id"] for e in found["data"]] == names[:0:-1] and found["has_more"] and found["last_id"] == names[1]
    assert [e["id"] for e in alice.get("/v1/effects", params={"after": found["last_id"]}).json()["data"]] == names[:1]
    assert alice.delete(f"/v1/effects/{names[0]}").json() == {
        "id": names[0], "object": "effect.deleted", "deleted": True,
    }  # fmt: skip
    error_of(alice.get(f"/v1/effects/{names[0]}"), 404)
    assert bob.get(f"/v1/effects/{shared}/content").status_code == 200 and len(made.artefacts.names()) == 3
    bob.delete(f"/v1/effects/{shared}")
    assert len(made.artefacts.names()) == 2


def test_a_blend_is_of_effects_that_one_has(made: Services, alice: TestClient, bob: TestClient) -> None:
    parts = [
        {"effect_id": new_effect(alice, text)["id"], "weight": weight} for text, weight in (("a", 0.7), ("b", 0.4))
    ]
    blend = alice.post("/v1/effects", json={"blend": parts}).json()
    assert blend["blend"] == sorted([part["effect_id"], part["weight"]] for part in parts)
    assert alice.post("/v1/effects", json={"blend": parts[::-1]}).json() == blend
    names = {name for name, artefact, _ in predictor(made).made[-1]["blend"] if artefact.startswith(name)}
    assert names == {part["effect_id"] for part in parts}
    error_of(bob.post("/v1/effects", json={"blend": parts}), 404)


def test_new_effects_are_limited_and_known_ones_are_not(alice: TestClient, clock: Clock) -> None:
    for i in range(4):
        new_effect(alice, f"effect {i}")
    answer = alice.post("/v1/effects", json={"prompt": "one more"})
    assert error_of(answer, 429)["code"] == "quota_exceeded" and int(answer.headers["retry-after"]) > 0
    new_effect(alice, "effect 0")
    clock.now += 61
    new_effect(alice, "one more")


def test_a_video_from_form_to_file(made: Services, alice: TestClient, clock: Clock) -> None:
    effect = new_effect(alice)
    answer = new_video(alice, effect_id=effect["id"], seed=7, strength=0.5)
    video = answer.json()
    assert answer.status_code == 200 and answer.headers["location"] == f"/v1/videos/{video['id']}"
    assert (video["object"], video["status"], video["progress"]) == ("video", "queued", 0)
    assert (video["size"], video["seconds"], video["seed"]) == ("48x32", "1.125", 7)
    assert error_of(alice.get(f"/v1/videos/{video['id']}/content"), 409)["code"] == "not_ready"
    job = made.jobs.claim("r")
    assert job is not None and job.request["strength"] == 0.5 and job.request["lora"].startswith(effect["id"])
    with made.artefacts.open(job.request["picture"]) as file:
        assert Image.open(io.BytesIO(file.read())).size == (48, 32)
    made.jobs.beat(job, 2)
    assert alice.get(f"/v1/videos/{video['id']}").json()["progress"] == 50
    error_of(alice.delete(f"/v1/effects/{effect['id']}"), 409)
    with made.artefacts.writing(f"{job.id}-1.mp4") as path:
        path.write_bytes(b"a video")
    made.jobs.complete(job, f"{job.id}-1.mp4")
    done = alice.get(f"/v1/videos/{video['id']}").json()
    assert done["status"] == "completed" and done["progress"] == 100 and done["completed_at"] == 1000
    content = alice.get(f"/v1/videos/{video['id']}/content")
    assert content.content == b"a video" and content.headers["content-type"] == "video/mp4"
    clock.now += 8 * 86_400
    for name in made.jobs.sweep().artefacts:
        made.artefacts.remove(name)
    assert error_of(alice.get(f"/v1/videos/{video['id']}/content"), 410)["code"] == "expired"
    assert alice.delete(f"/v1/videos/{video['id']}").json()["deleted"] is True
    error_of(alice.get(f"/v1/videos/{video['id']}"), 404)
    assert [name for name in made.artefacts.names() if not name.startswith("eff_")] == []


def test_a_video_in_json_with_an_effect_in_words(made: Services, alice: TestClient) -> None:
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    fields = {"prompt": "a fox", "input_reference": {"image_url": url}, "effect_prompt": "it melts", "num_frames": 5}
    video = alice.post("/v1/videos", json=fields).json()
    assert video["effect_id"] == new_effect(alice)["id"] and video["status"] == "queued"
    for wrong, status in ((url[:-7] + "!", 422), (url[:60], 422), ("http://127.0.0.1/x.png", 422)):
        error = error_of(alice.post("/v1/videos", json=fields | {"input_reference": {"image_url": wrong}}), status)
        assert error["param"].startswith("input_reference")
    assert len(made.jobs.page("alice").jobs) == 1


def test_a_key_gives_one_video(alice: TestClient, bob: TestClient, made: Services) -> None:
    headers = {"idempotency-key": "k-1"}
    first = new_video(alice, headers).json()
    assert new_video(alice, headers).json() == first
    assert error_of(new_video(alice, headers, seed=2), 422)["code"] == "idempotency_key_reused"
    assert new_video(bob, headers).json()["id"] != first["id"]
    assert len(made.artefacts.names()) == 2  # one picture each


def test_cancelling_and_deleting(made: Services, alice: TestClient) -> None:
    waiting, running = (new_video(alice).json()["id"] for _ in range(2))
    assert alice.post(f"/v1/videos/{waiting}/cancel").json()["status"] == "cancelled"
    job = made.jobs.claim("r")
    assert job is not None and job.id == running
    assert alice.post(f"/v1/videos/{running}/cancel").json()["status"] == "in_progress"
    assert error_of(alice.delete(f"/v1/videos/{running}"), 409)["code"] == "conflict"  # the renderer does not answer
    made.jobs.stop(job)
    assert alice.delete(f"/v1/videos/{running}").json()["deleted"] and alice.delete(f"/v1/videos/{waiting}").is_success
    assert made.artefacts.names() == []


def test_events_end_with_the_video(made: Services, alice: TestClient) -> None:
    video = new_video(alice).json()["id"]
    job = made.jobs.claim("r")
    assert job is not None
    made.jobs.beat(job, 1)
    made.jobs.fail(job, "oom", "out of memory")
    answer = alice.get(f"/v1/videos/{video}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    event, data = answer.text.strip().split("\n")
    assert event == "event: failed" and json.loads(data.removeprefix("data: "))["error"]["code"] == "oom"


def test_other_owners_things_are_not_there(alice: TestClient, bob: TestClient) -> None:
    video, effect = new_video(alice).json()["id"], new_effect(alice)["id"]
    for method, path in (
        ("GET", f"/v1/videos/{video}"), ("DELETE", f"/v1/videos/{video}"), ("POST", f"/v1/videos/{video}/cancel"),
        ("GET", f"/v1/videos/{video}/content"), ("GET", f"/v1/videos/{video}/events"), ("GET", f"/v1/effects/{effect}"),
        ("GET", f"/v1/effects/{effect}/content"), ("DELETE", f"/v1/effects/{effect}"),
    ):  # fmt: skip
        error_of(bob.request(method, path), 404)
    error_of(new_video(bob, effect_id=effect), 404)
    assert bob.get("/v1/videos").json()["data"] == [] == bob.get("/v1/effects").json()["data"]
    assert alice.get(f"/v1/videos/{video}").json()["status"] == "queued"


def test_without_a_key_nothing_is_told(made: Services, alice: TestClient) -> None:
    for headers in ({"authorization": ""}, {"authorization": "Bearer wrong"}):
        for method, path in (("GET", "/v1/videos"), ("POST", "/v1/effects"), ("GET", "/v1/effects/eff_1")):
            answer = alice.request(method, path, headers=headers)
            assert error_of(answer, 401)["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"


def test_limits_of_jobs(alice: TestClient, bob: TestClient) -> None:
    for _ in range(3):
        assert new_video(alice).is_success
    assert error_of(new_video(alice), 429)["code"] == "quota_exceeded"
    assert new_video(bob).is_success and new_video(bob).is_success
    answer = new_video(bob)
    assert error_of(answer, 429)["code"] == "queue_full" and answer.headers["retry-after"] == "10"


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400), (b'{"prompt": NaN}', "application/json", 400),
        (b"[1]", "application/json", 422), (b"\xff", "application/json", 400), (b"", "application/json", 400),
        (b"[" * 100_000, "application/json", 400), (b'{"prompt": "\\ud800"}', "application/json", 422),
        (b"prompt=x", "application/x-www-form-urlencoded", 415), (b"x", "", 415), (b"x", "multipart/form-data", 415),
        (b"x" * 300_000, "application/json", 413),
    ],
)  # fmt: skip
def test_bodies_that_are_none(alice: TestClient, body: bytes, kind: str, status: int) -> None:
    error_of(alice.post("/v1/effects", content=body, headers={"content-type": kind}), status)


@pytest.mark.parametrize("body", [b"", b"x", b"--b\r\n", b"--b\r\ncontent-disposition: form-data\r\n\r\n\r\n--b--\r\n"])
def test_forms_that_are_none(alice: TestClient, body: bytes) -> None:
    for kind in ("multipart/form-data", "multipart/form-data; boundary=b", "multipart/form-data; boundary="):
        answer = alice.post("/v1/videos", content=body, headers={"content-type": kind})
        assert 400 <= answer.status_code < 500 and answer.json()["error"]["code"]


def test_forms_with_more_than_asked_for(alice: TestClient) -> None:
    for files in ([("input_reference", picture())] * 2, [("other", picture())], []):
        named = [(name, ("../../x.png", data)) for name, data in files]
        answer = alice.post("/v1/videos", data={"prompt": "a fox"}, files=named or {"prompt": (None, "a fox")})
        assert answer.status_code in (400, 422)


def test_what_goes_wrong_inside_stays_inside(made: Services, alice: TestClient) -> None:
    predictor(made).error = OutputError("/secret/place: cannot be written")
    answer = alice.post("/v1/effects", json={"prompt": "it melts"})
    assert error_of(answer, 500)["type"] == "server_error" and "secret" not in answer.text
    predictor(made).error = Overloaded("busy", retry_after_s=3)
    answer = alice.post("/v1/effects", json={"prompt": "it melts"})
    assert error_of(answer, 503)["code"] == "overloaded" and answer.headers["retry-after"] == "3"
    predictor(made).error = None
    new_effect(alice)


@pytest.mark.parametrize("name", ["..%2f..%2fetc%2fpasswd", "%2e%2e", "eff_%00", "eff_x%0a", "x" * 5000])
def test_names_of_nothing(alice: TestClient, name: str) -> None:
    for path in (
        f"/v1/effects/{name}",
        f"/v1/effects/{name}/content",
        f"/v1/videos/{name}",
        f"/v1/videos/{name}/content",
    ):
        error_of(alice.get(path), 404)


def test_health_metrics_and_the_rest(made: Services, alice: TestClient) -> None:
    assert alice.get("/healthz").json() == {"status": "ok"} and alice.get("/readyz").json() == {"status": "ready"}
    predictor(made).loaded = False
    assert error_of(alice.get("/readyz"), 503)["code"] == "not_ready" and alice.get("/healthz").is_success
    predictor(made).loaded = True
    for call in (new_effect, new_effect, new_video):
        call(alice)
    text = alice.get("/metrics").text
    for line in ("p2e_effect_hits_total 1.0", "p2e_effect_misses_total 1.0", 'p2e_jobs{status="queued"} 1.0',
                 'p2e_requests_total{method="POST",route="/v1/effects",status="201"} 2.0', "p2e_queue_wait_seconds 0.0",
                 "p2e_predict_seconds_count 1.0"):  # fmt: skip
        assert line in text
    assert [model["id"] for model in alice.get("/v1/models").json()["data"]] == ["world"]
    assert error_of(alice.get("/nowhere"), 404)["code"] == "not_found"
    assert error_of(alice.put("/v1/effects"), 405)["code"] == "method_not_allowed"
    assert error_of(alice.get("/v1/videos", params={"limit": 0}), 422)["param"] == "limit"
    assert "/v1/videos/{job_id}/cancel" in alice.get("/openapi.json").json()["paths"]
