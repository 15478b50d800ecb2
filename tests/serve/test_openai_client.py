"""The official OpenAI client as it is, with this service's address in it."""

import asyncio
import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from databases import Clock
from gateways import FakePredictor, picture, services, tokens
from openai import OpenAI
from openai.types import Video
from running import Running, running

from serve.job import JobSettings

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Running]:
    limits = {"jobs": 3, "effects_per_minute": 9}
    with running(services(tmp_path, Clock(), jobs=JobSettings(queue_limit=4), limits=limits)) as found:
        yield found


def client_of(up: Running, key: str | None = None, **settings: object) -> OpenAI:
    """A client that tries once."""
    key = tokens["alice"].removeprefix("Bearer ") if key is None else key
    return OpenAI(base_url=f"{up.address}/v1", api_key=key, max_retries=0, **settings)  # pyright: ignore


@pytest.fixture
def client(up: Running) -> Iterator[OpenAI]:
    with client_of(up) as found:
        yield found


def test_create_and_poll_then_download(client: OpenAI, up: Running, tmp_path: Path) -> None:
    video = client.videos.create_and_poll(prompt="a fox", input_reference=picture(), poll_interval_ms=20)
    assert isinstance(video, Video) and (video.status, video.progress, video.error) == ("completed", 100, None)
    assert (video.prompt, video.model, video.size, video.seconds) == ("a fox", "world", "48x32", "1.125")
    assert video.completed_at == 1000 and video.expires_at is not None and video.remixed_from_video_id is None
    content = client.videos.download_content(video.id)
    content.write_to_file(tmp_path / "fox.mp4")
    assert (tmp_path / "fox.mp4").read_bytes()[4:8] == b"ftyp"
    assert client.videos.download_content(video.id, variant="video").read() == content.read()
    with client.videos.with_streaming_response.download_content(video.id) as stream:
        assert b"".join(stream.iter_bytes()) == content.read() and stream.headers["content-type"] == "video/mp4"


def test_all_that_openai_lets_one_ask_for(up: Running) -> None:
    """Its sizes and lengths are strings; its models are taken for the one that is served. The answers are valid by its
    own schema, which has no other sizes than its own."""
    up.worker.go.clear()
    sent: Any = {"prompt": "a fox", "input_reference": picture()}
    with client_of(up, _strict_response_validation=True) as client:
        video = client.videos.create(**sent, model="sora-2", seconds="4", size="1280x720")
        assert (video.size, video.status, video.model) == ("1280x720", "queued", "world")
        assert float(video.seconds) == pytest.approx(4, abs=0.25)
        portrait = client.videos.create(**sent, model="sora-2-pro", size="720x1280")
        assert portrait.size == "720x1280" and client.videos.retrieve(portrait.id) == portrait
        assert list(client.videos.list()) == [portrait, video]
        for wrong in ({"seconds": "20"}, {"size": "1792x1024"}):
            with pytest.raises(openai.UnprocessableEntityError) as error:
                client.videos.create(**sent, **wrong)  # pyright: ignore
            assert error.value.param == next(iter(wrong)) and error.value.code == "invalid_value"


def test_every_form_of_a_picture(client: OpenAI, up: Running, tmp_path: Path) -> None:
    up.worker.go.clear()
    path = tmp_path / "fox.png"
    path.write_bytes(picture())
    named = ("fox.png", picture())
    for reference in (path, io.BytesIO(picture()), named, (*named, "image/png")):
        video = client.videos.create(prompt="a fox", input_reference=reference)
        client.post(f"/videos/{video.id}/cancel", cast_to=object)
    with path.open("rb") as file:
        assert client.videos.create(prompt="a fox", input_reference=file).status == "queued"
    url = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
    as_json = {"prompt": "a fox", "input_reference": {"image_url": url}}
    assert client.post("/videos", body=as_json, cast_to=Video).status == "queued"
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.videos.create(prompt="a fox")
    assert error.value.param == "input_reference"


def test_more_fields_than_openai_has(client: OpenAI, up: Running) -> None:
    up.worker.go.clear()
    effect = client.post("/effects", body={"prompt": "it melts"}, cast_to=dict[str, object])
    more = {
        "effect_id": effect["id"], "strength": 0.5, "seed": 7, "num_frames": 5, "num_inference_steps": 3,
        "guidance_scale": 2, "negative_prompt": "",
    }  # fmt: skip
    video = client.videos.create(prompt="a fox", input_reference=picture(), extra_body=more)
    found = video.model_dump()
    assert (found["effect_id"], found["seed"], video.seconds) == (effect["id"], 7, "0.625")
    job = up.services.jobs.get(video.id, "alice")
    assert job.request["strength"] == 0.5 and job.request["clip"]["guidance"] == 2 and job.steps == 3
    again = {"extra_headers": {"Idempotency-Key": "k-1"}, "extra_body": {"seed": 1}}
    first, second = (client.videos.create(prompt="x", input_reference=picture(), **again) for _ in range(2))  # pyright: ignore
    assert first == second


def test_lists_are_read_to_the_end(client: OpenAI, up: Running) -> None:
    up.worker.go.clear()
    assert list(client.videos.list()) == [] and not client.videos.list().has_next_page()
    names = [client.videos.create(prompt=f"fox {i}", input_reference=picture()).id for i in range(3)]
    for limit in (1, 2, 3):
        assert [video.id for video in client.videos.list(limit=limit)] == names[::-1]
        assert [video.id for video in client.videos.list(limit=limit, order="asc")] == names
    assert [video.id for video in client.videos.list(after=names[1], order="asc")] == names[2:]
    page = client.videos.list(limit=2)
    assert page.has_more and page.last_id == names[1] and len(page.get_next_page().data) == 1


def test_failing_cancelling_deleting(client: OpenAI, up: Running) -> None:
    up.worker.failing = ("oom", "out of memory")
    video = client.videos.create_and_poll(prompt="a fox", input_reference=picture(), poll_interval_ms=20)
    assert video.status == "failed" and video.error is not None and video.error.code == "oom"
    deleted = client.videos.delete(video.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (video.id, True, "video.deleted")
    up.worker.go.clear()
    waiting = client.videos.create(prompt="a fox", input_reference=picture())
    assert client.videos.delete(waiting.id).deleted and list(client.videos.list()) == []
    waiting = client.videos.create(prompt="a fox", input_reference=picture())
    client.post(f"/videos/{waiting.id}/cancel", cast_to=object)
    assert str(client.videos.poll(waiting.id).status) == "cancelled"  # which OpenAI has not


def test_its_errors(client: OpenAI, up: Running) -> None:
    up.worker.go.clear()
    video = client.videos.create(prompt="a fox", input_reference=picture())
    for call in (
        lambda: client.videos.retrieve("video_none"), lambda: client.videos.delete("video_none"),
        lambda: client.videos.download_content("video_none"), lambda: client.videos.list(after="video_none"),
        lambda: client.videos.remix(video.id, prompt="again"),  # there is no remixing
    ):  # fmt: skip
        with pytest.raises(openai.NotFoundError) as missing:
            call()
        assert missing.value.code == "not_found"
    with pytest.raises(openai.ConflictError) as early:
        client.videos.download_content(video.id)
    assert early.value.code == "not_ready"
    with client_of(up, "p2e-wrong") as stranger, pytest.raises(openai.AuthenticationError) as unknown:
        stranger.videos.list()
    assert unknown.value.code == "invalid_api_key" and unknown.value.type == "invalid_request_error"
    with pytest.raises(openai.UnprocessableEntityError):
        client.videos.create(prompt="", input_reference=picture())
    with pytest.raises(openai.UnprocessableEntityError) as other:
        client.videos.download_content(video.id, variant="thumbnail")
    assert other.value.param == "variant"
    for _ in range(2):
        client.videos.create(prompt="a fox", input_reference=picture())
    with pytest.raises(openai.RateLimitError) as many:
        client.videos.create(prompt="a fox", input_reference=picture())
    assert many.value.code == "quota_exceeded"
    assert isinstance(up.services.predictor, FakePredictor)
    up.services.predictor.loaded = False
    with pytest.raises(openai.InternalServerError) as down:
        client.post("/effects", body={"prompt": "it melts"}, cast_to=object)
    assert down.value.status_code == 503 and down.value.response.headers["retry-after"] == "5"


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["world"]


async def asked_asynchronously(up: Running) -> str:
    key = tokens["bob"].removeprefix("Bearer ")
    async with openai.AsyncOpenAI(base_url=f"{up.address}/v1", api_key=key) as client:
        video = await client.videos.create_and_poll(prompt="a fox", input_reference=picture(), poll_interval_ms=20)
        content = await client.videos.download_content(video.id)
        assert content.read()[4:8] == b"ftyp" and [one.id async for one in client.videos.list()] == [video.id]
        return video.status


def test_the_asynchronous_client(up: Running) -> None:
    assert asyncio.run(asked_asynchronously(up)) == "completed"
