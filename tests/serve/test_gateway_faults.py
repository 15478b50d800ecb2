"""Where the gateway once said the wrong thing, or nothing."""

import base64
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from databases import Clock
from gateways import picture, services, tokens
from starlette.testclient import TestClient

from serve.gateway import build_app
from serve.services import Services


@pytest.fixture
def made(tmp_path: Path) -> Services:
    found = services(tmp_path, Clock())
    found.settings = found.settings.model_copy(update={"poll_s": 0.2})
    return found


@pytest.fixture
def alice(made: Services) -> TestClient:
    return TestClient(build_app(made), headers={"authorization": tokens["alice"]})


def new_video(client: TestClient) -> Any:
    return client.post("/v1/videos", data={"prompt": "a fox"}, files={"input_reference": ("x.png", picture())})


@pytest.mark.parametrize("text", ["§", "QQ=", "é" * 4, "Q Q="])
def test_pictures_that_are_no_base64(alice: TestClient, text: str) -> None:
    """Letters that are not ASCII are no `binascii.Error`."""
    url = {"image_url": f"data:image/png;base64,{base64.b64encode(picture()).decode()}{text}"}
    answer = alice.post("/v1/videos", json={"prompt": "a fox", "input_reference": url})
    assert answer.status_code == 422 and answer.json()["error"]["code"] == "wrong_picture"


def test_a_picture_that_cannot_be_stored(made: Services, alice: TestClient, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "artefacts")
    (tmp_path / "artefacts").write_text("no folder")
    answer = new_video(alice)
    assert answer.status_code == 507 and answer.json()["error"]["code"] == "storage_failed"
    assert int(answer.headers["retry-after"]) > 0 and str(tmp_path) not in answer.text
    assert made.jobs.page("alice").jobs == []


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/effects", "GET, POST"), ("/v1/effects/x", "DELETE, GET"), ("/v1/videos/x", "DELETE, GET"),
        ("/v1/videos/x/cancel", "POST"), ("/v1/models", "GET"),
    ],
)  # fmt: skip
def test_all_methods_of_a_path_are_named(alice: TestClient, path: str, allowed: str) -> None:
    answer = alice.put(path)
    assert answer.status_code == 405 and answer.headers.get_list("allow") == [allowed]


def test_events_end_when_the_video_is_deleted(
    made: Services, alice: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream looks for the video from time to time, and may miss its end."""
    video, found = new_video(alice).json()["id"], []
    follower = threading.Thread(target=lambda: found.append(alice.get(f"/v1/videos/{video}/events")))
    looked = threading.Event()
    get = made.jobs.get

    def seen(*arguments: Any) -> Any:
        job = get(*arguments)
        looked.set()  # not before: it is to find the video
        return job

    monkeypatch.setattr(made.jobs, "get", seen)
    follower.start()
    assert looked.wait(10)
    made.jobs.cancel(video, "alice")
    made.jobs.delete(video, "alice")
    follower.join(10)
    # It tells of a video that waits, and of its end if it looks between the two calls.
    assert [answer.text.count("event: ") for answer in found] in ([1], [2])
