"""What callers meet, through real proxies and replicas on the world: limits, headers, bodies, many at once."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlparse

import httpx
import psutil
import pytest
from gateways import picture
from live import BODY_BYTES, BODY_TIMEOUT_S, QUEUE, SHORT, SLOW, Live, ended, live_ray, new_video, processes
from local_ray import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_ray(tmp_path_factory.mktemp("live")) as found:
        yield found


@pytest.fixture
def alice(live: Live) -> Iterator[httpx.Client]:
    with live.caller() as caller:
        yield caller


def effect(caller: httpx.Client, prompt: str) -> str:
    answer = caller.post("/v1/effects", json={"prompt": prompt})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def content(caller: httpx.Client, video: str) -> bytes:
    found = ended(caller, video)
    assert found["status"] == "completed", found
    return caller.get(f"/v1/videos/{video}/content").content


def test_from_words_to_a_lora_and_a_video(alice: httpx.Client) -> None:
    levitates = effect(alice, "the subject levitates")
    lora = alice.get(f"/v1/effects/{levitates}/content")
    assert (
        lora.status_code == 200 and len(lora.content) == alice.get(f"/v1/effects/{levitates}").json()["lora"]["bytes"]
    )
    video = new_video(alice, effect_id=levitates, **SHORT).json()["id"]
    with alice.stream("GET", f"/v1/videos/{video}/events") as events:
        kinds = [line for line in events.iter_lines() if line.startswith("event:")]
    assert kinds[-1] == "event: completed" and set(kinds[:-1]) <= {"event: progress"}
    assert content(alice, video)[4:8] == b"ftyp"
    part = alice.get(f"/v1/videos/{video}/content", headers={"range": "bytes=4-7"})
    assert part.status_code == 206 and part.content == b"ftyp"


def test_effects_that_take_turns_do_not_mix(alice: httpx.Client) -> None:
    """100 renders of two effects, asked for all at once, equal those that were made one after the other."""
    effects = [effect(alice, text) for text in ("the subject levitates", "everything turns red")]
    alone = {
        (one, seed): content(alice, new_video(alice, effect_id=one, seed=seed, **SHORT).json()["id"])
        for one in effects for seed in (0, 1)
    }  # fmt: skip
    assert len(set(alone.values())) == 4
    with ThreadPoolExecutor(8) as pool:
        asked = [(effects[i % 2], i // 2 % 2) for i in range(100)]
        made = list(pool.map(lambda x: new_video(alice, effect_id=x[0], seed=x[1], **SHORT).json()["id"], asked))
    for key, video in zip(asked, made, strict=True):
        assert content(alice, video) == alone[key]


def test_cancelling_in_every_state(alice: httpx.Client) -> None:
    running, waiting = (new_video(alice, **SLOW).json()["id"] for _ in range(2))
    wait_until(lambda: alice.get(f"/v1/videos/{running}").json()["progress"] > 0, "a first step")
    assert alice.post(f"/v1/videos/{waiting}/cancel").json()["status"] == "cancelled"
    start = time.monotonic()
    for _ in range(2):  # twice is once
        assert alice.post(f"/v1/videos/{running}/cancel").status_code == 200
    assert ended(alice, running)["status"] == "cancelled" and time.monotonic() - start < 5
    done = new_video(alice, **SHORT).json()["id"]  # the renderer goes on with the next
    assert ended(alice, done)["status"] == "completed"
    assert alice.post(f"/v1/videos/{done}/cancel").status_code == 409
    assert alice.get(f"/v1/videos/{waiting}/content").status_code == 409
    last = new_video(alice, **SLOW).json()["id"]
    wait_until(lambda: alice.get(f"/v1/videos/{last}").json()["status"] == "in_progress", "its turn")
    assert alice.delete(f"/v1/videos/{last}").json()["deleted"]  # cancels, waits and deletes
    assert alice.get(f"/v1/videos/{last}").status_code == 404


def test_an_effect_that_was_deleted_ends_its_video_with_a_word(live: Live, alice: httpx.Client) -> None:
    melts = effect(alice, "it melts away")
    stores = live.stores
    stores.artefacts.remove(stores.effects.get(melts, "alice").artefact)
    found = ended(alice, new_video(alice, effect_id=melts, **SHORT).json()["id"])
    assert (found["status"], found["error"]["code"]) == ("failed", "effect_gone")
    assert ended(alice, new_video(alice, **SHORT).json()["id"])["status"] == "completed"


def test_callers_that_leave_leave_nothing_half_done(live: Live, alice: httpx.Client) -> None:
    """Connections are cut at every moment of a request: what was accepted by then is done, and nothing else is left."""
    stores = live.stores
    before = {video["id"] for video in alice.get("/v1/videos").json()["data"]}
    pictures = set(stores.artefacts.names())
    for wait in (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2):
        with live.caller() as caller, contextlib.suppress(httpx.TimeoutException):
            caller.timeout = httpx.Timeout(5, read=wait)
            new_video(caller, **SHORT)
    kept = new_video(alice, **SHORT).json()["id"]
    alice.close()
    with live.caller() as again:
        new = {video["id"] for video in again.get("/v1/videos").json()["data"]} - before
        assert kept in new and {ended(again, video)["status"] for video in new} == {"completed"}
    known = {job.request["picture"] for job in stores.jobs.page("alice", limit=20).jobs}
    assert {name for name in set(stores.artefacts.names()) - pictures if name.endswith(".png")} <= known


def test_the_switches_of_the_proxy_are_not_the_callers(alice: httpx.Client) -> None:
    """Serve's proxy obeys these headers; with the first one obeyed, this request would end at once with a 408."""
    for value in ("0.0001", "0", "-1", "nan"):
        headers = {"x-request-timeout-seconds": value, "x-request-disconnect-disabled": "?1"}
        answer = alice.post("/v1/effects", json={"prompt": f"it glows at {value}"}, headers=headers)
        assert answer.status_code == 201, answer.text


def raw(live: Live, head: str, pieces: Iterator[bytes], patience: float = 30) -> bytes:
    """What a connection answers to bytes as they are."""
    place = urlparse(live.address)
    with socket.create_connection((place.hostname, place.port), timeout=patience) as line:
        token = live.tokens["alice"]
        start = f"POST /v1/videos HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n{head}\r\n\r\n"
        answer = b""
        try:
            line.sendall(start.encode())
            for piece in pieces:
                line.sendall(piece)
        except OSError:
            pass  # refused before all of it was sent
        try:
            while piece := line.recv(65536):
                answer += piece
                if b"\r\n\r\n" in answer and b"}" in answer.partition(b"\r\n\r\n")[2]:
                    break
        except OSError:
            pass
    return answer


def endless(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield b"10000\r\n" + b"x" * 65536 + b"\r\n"


def slow() -> Iterator[bytes]:
    yield b'--b\r\ncontent-disposition: form-data; name="prompt"\r\n\r\n'
    for _ in range(100):
        yield b"x"
        time.sleep(0.1)


def memory() -> int:
    """Bytes that the service's processes hold."""
    return sum(psutil.Process(number).memory_info().rss for number in processes("ray::"))


def test_bodies_are_bounded_as_they_come(live: Live) -> None:
    """A gigabyte without a length, one announced, one that lies, and one that never comes."""
    held = memory()
    kind = "content-type: multipart/form-data; boundary=b"
    assert b" 413 " in raw(live, f"{kind}\r\ntransfer-encoding: chunked", endless(16_384)).split(b"\r\n")[0]
    assert b" 413 " in raw(live, f"{kind}\r\ncontent-length: 1073741824", iter([b"x"])).split(b"\r\n")[0]
    start = time.monotonic()
    answer = raw(live, f"{kind}\r\ncontent-length: {BODY_BYTES}", slow())
    assert b" 408 " in answer.split(b"\r\n")[0] and time.monotonic() - start < BODY_TIMEOUT_S + 5
    assert b" 4" in raw(live, f"{kind}\r\ncontent-length: 10", iter([b"x" * 100_000])).split(b"\r\n")[0][:13]
    assert memory() - held < 60 << 20


def test_a_full_queue_says_so_and_nothing_grows(alice: httpx.Client) -> None:
    """More videos than the queue takes, from many at once: each is accepted or told when to come again."""
    held, files = memory(), picture()

    async def all_at_once() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=32)
        async with httpx.AsyncClient(base_url=alice.base_url, headers=alice.headers, timeout=120, limits=limits) as one:

            async def ask(index: int) -> httpx.Response:
                data = {"prompt": "a fox", "seed": str(index), "num_frames": "5"}
                return await one.post("/v1/videos", data=data, files={"input_reference": ("x.png", files, "image/png")})

            return await asyncio.gather(*(ask(index) for index in range(QUEUE + 60)))

    answers = asyncio.run(all_at_once())
    assert {answer.status_code for answer in answers} == {200, 429}
    full = [answer for answer in answers if answer.status_code == 429]
    assert all(a.json()["error"]["code"] == "queue_full" and int(a.headers["retry-after"]) > 0 for a in full)
    taken = [answer.json()["id"] for answer in answers if answer.status_code == 200]
    assert QUEUE <= len(set(taken)) == len(taken) < QUEUE + 60 and memory() - held < 60 << 20
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda video: alice.post(f"/v1/videos/{video}/cancel"), taken))
    assert {ended(alice, video)["status"] for video in taken} <= {"cancelled", "completed"}


def test_fifty_at_once_with_one_key_are_one_job(alice: httpx.Client) -> None:
    headers = {"idempotency-key": "fifty"}

    async def all_at_once() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=alice.base_url, headers=alice.headers, timeout=120) as caller:
            files = {"input_reference": ("x.png", picture(), "image/png")}
            data = {"prompt": "a fox", **{name: str(value) for name, value in SHORT.items()}}
            return await asyncio.gather(
                *(caller.post("/v1/videos", data=data, files=files, headers=headers) for _ in range(50))
            )

    answers = asyncio.run(all_at_once())
    assert {answer.status_code for answer in answers} == {200} and len({a.json()["id"] for a in answers}) == 1
    assert new_video(alice, headers=headers, seed=9, **SHORT).status_code == 422
    ended(alice, answers[0].json()["id"])


def test_no_other_owner_sees_any_of_it(live: Live, alice: httpx.Client) -> None:
    video = new_video(alice, **SHORT).json()["id"]
    ended(alice, video)
    with live.caller("bob") as bob, httpx.Client(base_url=live.address) as nobody:
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/content"), ("GET", "/events")):
            assert bob.request(method, f"/v1/videos/{video}{path}").status_code == 404
            assert nobody.request(method, f"/v1/videos/{video}{path}").status_code == 401
        assert bob.get("/v1/videos").json()["data"] == []


@pytest.mark.parametrize("name", ["..%2f..%2fetc%2fpasswd", "%2e%2e", "video_%00", "video_x%0a", "x" * 5000])
def test_names_of_nothing(alice: httpx.Client, name: str) -> None:
    for path in (f"/v1/effects/{name}", f"/v1/videos/{name}", f"/v1/videos/{name}/content"):
        assert alice.get(path).status_code in (404, 422)


NUMBERS: list[tuple[str, str]] = [
    *((field, value) for field in ("strength", "guidance_scale") for value in ("nan", "inf", "-inf", "1e309", "x")),
    *((field, value) for field in ("seed", "num_frames", "num_inference_steps")
      for value in ("-1", str(2**64), "1.5", "true", "", "0x10", "9" * 5000)),
    ("num_frames", "6"), ("num_frames", "100001"), ("num_inference_steps", "0"), ("num_inference_steps", "51"),
    ("size", "0x0"), ("size", "97x96"), ("size", "4096x4096"), ("size", "96X96"), ("size", "-96x96"),
    ("seconds", "0x1"), ("seconds", "999"), ("effect_id", "../../etc/passwd"), ("effect_id", "eff_" + "0" * 31 + "\n"),
    ("effect_prompt", ""), ("effect_prompt", "x" * 1_000), ("prompt", " "), ("prompt", "\x00"), ("prompt", "x" * 9**5),
    ("negative_prompt", "\x1b[2J"), ("lora", "/etc/passwd"), ("model", "x" * 1000), ("input_reference", "file:///x"),
]  # fmt: skip


def test_no_value_is_an_error_of_the_server(alice: httpx.Client) -> None:
    for field, value in NUMBERS:
        asked: dict[str, Any] = {field: value}
        answer = new_video(alice, **asked)
        ok = field == "effect_prompt" and len(value) == 1000
        assert answer.status_code == 200 if ok else 400 <= answer.status_code < 500, (field, value[:20], answer.text)
        if not ok:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        else:
            alice.post(f"/v1/videos/{answer.json()['id']}/cancel")


def test_addresses_are_never_opened(alice: httpx.Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        listener.settimeout(1)
        for url in (
            f"http://127.0.0.1:{port}/x.png", f"http://[::ffff:127.0.0.1]:{port}/x.png", "http://169.254.169.254/x",
            f"https://127.0.0.1:{port}\\@example.com/", "file:///etc/passwd", f"data:image/png,http://127.0.0.1:{port}",
            f"ftp://127.0.0.1:{port}/x", "data:image/svg+xml;base64,PHN2Zy8+", f"//127.0.0.1:{port}/x.png",
        ):  # fmt: skip
            body = {"prompt": "a fox", "input_reference": {"image_url": url}}
            assert alice.post("/v1/videos", json=body).status_code == 422, url
        with pytest.raises(TimeoutError):
            listener.accept()
