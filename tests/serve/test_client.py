"""The client against a gateway that answers, one that is not there, and a way to it that breaks."""

import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from breaking import Breaking, Harm, breaking
from databases import Clock
from gateways import FakePredictor, picture, services, tokens
from running import Running, running

from p2e.client import Client, EndpointError, Video
from p2e.errors import InputError, OutputError, P2EError
from serve.job import JobSettings

NOWHERE = "eff_" + "0" * 32


def key_of(name: str) -> str:
    return tokens[name].removeprefix("Bearer ")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("service")
    limits = {"jobs": 40, "effects_per_minute": 1000}
    with running(services(folder, Clock(), jobs=JobSettings(), limits=limits)) as found:
        yield found


@pytest.fixture(autouse=True)
def at_work(up: Running) -> Iterator[None]:
    yield
    up.worker.go.set()
    up.worker.failing = None
    assert isinstance(up.services.predictor, FakePredictor)
    up.services.predictor.loaded, up.services.predictor.error = True, None


@pytest.fixture
def client(up: Running) -> Iterator[Client]:
    with Client(up.address, key_of("alice")) as found:
        yield found


@pytest.fixture
def proxy(up: Running) -> Iterator[Breaking]:
    with breaking(up.address) as found:
        yield found


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client does not wait between tries; how long it would have is here."""
    found: list[float] = []
    monkeypatch.setattr("p2e.client.time", SimpleNamespace(sleep=found.append, monotonic=time.monotonic))
    return found


@pytest.fixture
def through(proxy: Breaking, pauses: list[float]) -> Iterator[Client]:
    with Client(proxy.address + "/v1/", key_of("alice")) as found:
        yield found


def failing(call: Callable[[], object]) -> EndpointError:
    with pytest.raises(EndpointError) as error:
        call()
    assert "\n" not in str(error.value) and key_of("alice") not in str(error.value)
    return error.value


def test_an_effect_from_words_to_file(up: Running, client: Client, tmp_path: Path) -> None:
    effect = client.effects.create("it melts", strength=0.5)
    assert (effect.prompt, effect.strength, effect.blend, effect.model) == ("it melts", 0.5, None, "world")
    assert client.effects.create("it melts", strength=0.5) == effect == client.effects.get(effect.id)
    place = client.effects.download(effect, tmp_path / "new" / "melt.safetensors")
    assert place.stat().st_size == effect.lora.bytes and list(place.parent.iterdir()) == [place]
    assert client.effects.download(effect.id, tmp_path / "again").read_bytes() == place.read_bytes()
    client.effects.delete(effect)
    assert failing(lambda: client.effects.get(effect.id)).code == "not_found"
    assert failing(lambda: client.effects.delete(effect)).status == 404


def test_a_blend(client: Client) -> None:
    parts = [(client.effects.create(text).id, weight) for text, weight in (("it rusts", 0.25), ("it glows", 0.5))]
    assert client.effects.create(blend=parts).blend == tuple(sorted(parts))
    error = failing(lambda: client.effects.create(blend=[(NOWHERE, 1.0)]))
    assert (error.status, error.code) == (404, "not_found")
    assert failing(lambda: client.effects.create("x", blend=parts)).status == 422


def test_a_list_goes_on_over_pages(up: Running) -> None:
    with Client(up.address, key_of("bob")) as client:
        names = [client.effects.create(f"effect {i}").id for i in range(5)]
        for size in (1, 2, 5, 100):
            assert [effect.id for effect in client.effects.list(page=size)] == names[::-1]
            assert [effect.id for effect in client.effects.list(order="asc", page=size)] == names
        assert list(client.videos.list()) == []


def test_a_video_from_picture_to_file(client: Client, tmp_path: Path) -> None:
    image = tmp_path / "fox.png"
    image.write_bytes(picture())
    video = client.videos.create(
        image, "a fox", effect_prompt="it melts", strength=0.5, seed=7, size="64x32", num_frames=5, steps=3,
        guidance=2.5, negative_prompt="blur",
    )  # fmt: skip
    assert (video.seed, video.size, video.seconds, video.ended) == (7, "64x32", "0.625", False)
    seen: list[Video] = []
    done = client.videos.wait(video, seen.append)
    assert done.status == "completed" and done.progress == 100 and seen[-1] == done == client.videos.get(video.id)
    assert [one.progress for one in seen] == sorted(one.progress for one in seen) and len(seen) > 2
    assert client.videos.download(done, tmp_path / "fox.mp4").read_bytes()[4:8] == b"ftyp"
    assert client.videos.wait(video.id) == done  # at once
    assert done in client.videos.list()
    client.videos.delete(done)
    assert done.id not in [one.id for one in client.videos.list()]


def test_a_video_may_be_cancelled_or_fail(up: Running, client: Client, tmp_path: Path) -> None:
    up.worker.go.clear()
    video = client.videos.create(picture(), "a fox")
    error = failing(lambda: client.videos.download(video, tmp_path / "x.mp4"))
    assert (error.status, error.code) == (409, "not_ready") and list(tmp_path.iterdir()) == []
    assert client.videos.cancel(video).status == "cancelled" == client.videos.wait(video).status
    up.worker.failing = ("oom", "out of memory")
    up.worker.go.set()
    done = client.videos.wait(client.videos.create(picture(), "a fox"))
    assert done.status == "failed" and done.error is not None and done.error.code == "oom"


def test_what_the_endpoint_refuses_is_said(client: Client) -> None:
    error = failing(lambda: client.videos.create(picture(), "a fox", size="17x16"))
    assert (error.status, error.code, error.param) == (422, "invalid_value", "size") and "multiples" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, P2EError) and vars(again) == vars(error) and str(again) == str(error)
    assert failing(lambda: client.videos.create(b"no picture", "a fox")).param == "input_reference"


def test_what_cannot_be_sent_is_not(client: Client, tmp_path: Path) -> None:
    for call in (
        lambda: client.effects.create("\ud800"), lambda: client.effects.create("x", strength=float("nan")),
        lambda: client.videos.create(picture(), "\ud800"), lambda: client.videos.create(tmp_path / "none.png", "x"),
        lambda: client.effects.get("../videos"), lambda: client.videos.get(""), lambda: client.videos.delete("a\n"),
    ):  # fmt: skip
        with pytest.raises(InputError):
            call()


def test_keys(up: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2E_API_KEY", key_of("alice"))
    with Client(up.address) as client:
        assert client.effects.create("it melts").prompt == "it melts" and key_of("alice") not in repr(client)
    with Client(up.address, "p2e-wrong") as client:
        error = failing(client.effects.create)
        assert error.status == 401 and "P2E_API_KEY" in str(error) and "p2e-wrong" not in str(error)
        assert client.models() == ["world"]
    monkeypatch.delenv("P2E_API_KEY")
    with Client(up.address) as client:
        assert failing(lambda: next(client.videos.list())).code == "invalid_api_key"
    with pytest.raises(InputError) as wrong:
        Client(up.address, "p2e-secret\nx")
    assert "secret" not in str(wrong.value)


@pytest.mark.parametrize(
    "endpoint",
    ["", "x", "ftp://x", "http://", "http:///x", "http://x?y", "http://a:secret@x", "http://x y", "http://x:y",
     "http://x:99999", "http://[::1"],
)  # fmt: skip
def test_addresses_that_are_none(endpoint: str) -> None:
    with pytest.raises(InputError) as error:
        Client(endpoint)
    assert "secret" not in str(error.value)


def test_readiness(up: Running, client: Client) -> None:
    assert client.ready()
    assert isinstance(up.services.predictor, FakePredictor)
    up.services.predictor.loaded = False
    assert not client.ready()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with Client(f"http://127.0.0.1:{closed.getsockname()[1]}", retries=0) as none:
            assert not none.ready()
            error = failing(none.models)
            assert error.status is None and error.code == "unreachable" and none.endpoint in str(error)


def test_what_is_busy_is_asked_again_when_it_says(through: Client, proxy: Breaking, pauses: list[float]) -> None:
    proxy.harm = [Harm("/models", 429, (("retry-after", "7"),)), Harm("/models", 503), Harm("/models", 502)]
    assert through.models() == ["world"]
    assert pauses[0] == 7 and 0.75 <= pauses[1] <= 1.25 and 1.5 <= pauses[2] <= 2.5
    proxy.harm = [Harm("/models", 503)] * 4
    assert failing(through.models).status == 503 and proxy.harm == []
    proxy.harm = [Harm("/models", 429, (("retry-after", "3600"),))]
    assert failing(through.models).retry_after_s == 3600 and len(pauses) == 6
    proxy.harm = [Harm("/models", 500)]
    assert failing(through.models).status == 500 and len(pauses) == 6


def test_what_is_sent_again_is_done_once(up: Running, through: Client, proxy: Breaking) -> None:
    """The service has done it, and its answer is lost on the way."""
    known = {video.id for video in through.videos.list()}
    proxy.harm = [Harm("/v1/videos", forward=True), Harm("/v1/videos"), Harm("/v1/videos", forward=True, cut=20)]
    video = through.videos.create(picture(), "a fox")
    assert {one.id for one in through.videos.list()} - known == {video.id}
    sent = [one.headers["idempotency-key"] for one in proxy.calls("/v1/videos") if one.method == "POST"]
    assert len(sent) == 4 and len(set(sent)) == 1
    assert through.videos.create(picture(), "a fox").id != video.id
    through.videos.wait(video)
    proxy.harm = [Harm(video.id, forward=True)]
    through.videos.delete(video)
    assert failing(lambda: through.videos.delete(video)).status == 404
    up.worker.go.clear()
    waiting = through.videos.create(picture(), "a fox")
    proxy.harm = [Harm("/cancel", forward=True)]
    assert through.videos.cancel(waiting).status == "cancelled" and len(proxy.calls("/cancel")) == 2


def test_downloads_are_whole_or_not_there(through: Client, proxy: Breaking, tmp_path: Path) -> None:
    effect, place = through.effects.create("it melts"), tmp_path / "melt.safetensors"
    place.write_bytes(b"old")
    proxy.harm = [Harm("/content", forward=True, damage=True)]
    assert failing(lambda: through.effects.download(effect, place)).code == "wrong_digest"
    proxy.harm = [Harm("/content", forward=True, cut=10)] * 4
    assert failing(lambda: through.effects.download(effect, place)).code == "unreachable"
    assert place.read_bytes() == b"old" and list(tmp_path.iterdir()) == [place]
    proxy.harm = [Harm("/content", forward=True, cut=10)]
    through.effects.download(effect, place)
    assert place.stat().st_size == effect.lora.bytes and list(tmp_path.iterdir()) == [place]
    for wrong in (tmp_path, place / "below"):
        with pytest.raises(OutputError):
            through.effects.download(effect, wrong)
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize(
    "harm",
    [
        Harm("/events", forward=True, cut=0), Harm("/events", forward=True, cut=40), Harm("/events", 404, body=b"{}"),
        Harm("/events", forward=True, cut=900), Harm("/events", 500), Harm("/events"),
        Harm("/events", 200, body=b"data: {\n\n"), Harm("/events", 200),
    ],
)  # fmt: skip
def test_events_that_break_off(proxy: Breaking, up: Running, harm: Harm) -> None:
    with Client(proxy.address, key_of("alice"), retries=0) as client:
        up.worker.go.clear()
        video = client.videos.create(picture(), "a fox")
        proxy.harm = [harm]
        up.worker.go.set()
        seen: list[Video] = []
        if harm.status == 404:
            assert failing(lambda: client.videos.wait(video, seen.append)).status == 404
            return
        done = client.videos.wait(video, seen.append, poll_s=0.01)
    assert done.status == "completed" == seen[-1].status and len(seen) == len(set(seen)) and proxy.harm == []
    assert len(proxy.calls("/events")) == (2 if harm.status == 200 and not harm.body else 1)
    assert [one.progress for one in seen] == sorted(one.progress for one in seen)


def test_an_endpoint_that_is_away_for_a_while(proxy: Breaking, up: Running) -> None:
    """It is waited for; where it stays away, the error says which video to come back for."""
    with Client(proxy.address, key_of("alice"), retries=0) as client:
        up.worker.go.clear()
        video = client.videos.create(picture(), "a fox")
        proxy.harm = [Harm("/events"), *(Harm(video.id, status) for status in (503, 502, None, 504))]
        up.worker.go.set()
        assert client.videos.wait(video, poll_s=0.01).status == "completed" and proxy.harm == []
        proxy.harm = [Harm("/events"), *(Harm(video.id, 503) for _ in range(50))]
        error = failing(lambda: client.videos.wait(video, poll_s=0.02, patience_s=0.1))
        assert error.status == 503 and video.id in str(error) and "\n" not in str(error)
        assert 1 < len(proxy.harm) < 50


def test_a_stream_that_is_quiet_is_opened_again(proxy: Breaking, up: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2e.client.QUIET_S", 0.1)
    with Client(proxy.address, key_of("alice"), retries=0) as client:
        up.worker.go.clear()
        video = client.videos.create(picture(), "a fox")
        seen: list[Video] = []
        timer = threading.Timer(0.4, up.worker.go.set)
        timer.start()
        assert client.videos.wait(video, seen.append, poll_s=0.01).status == "completed"
        timer.join()
    assert len(proxy.calls("/events")) > 1 and not proxy.calls(video.id) and len(seen) == len(set(seen))


def test_a_newer_and_a_strange_endpoint(through: Client, proxy: Breaking) -> None:
    newer = b'{"id": "v_1", "status": "paused", "progress": 3, "created_at": 1, "error": null, "more": [1]}'
    proxy.harm = [Harm("/v_1", 200, body=newer)]
    assert through.videos.get("v_1") == Video("v_1", "paused", 3, 1)
    for body in (b"<html>", b"[]", b"{}", b'{"id": "v_1"}', b"\xff", b"[" * 100_000):
        proxy.harm = [Harm("/v_1", 200, body=body)]
        assert failing(lambda: through.videos.get("v_1")).code == "strange_answer"
    text = b'{"error": {"message": "no\\n\\u001b[31m %s", "code": 3}}' % key_of("alice").encode()
    for status, body in ((404, b""), (302, b""), (418, b"[]"), (400, text), (400, b'{"error": {"message": null}}')):
        proxy.harm = [Harm("/v_1", status, body=body)]
        error = failing(lambda: through.videos.get("v_1"))
        assert error.status == status and str(error).isprintable()
