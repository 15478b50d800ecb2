"""Files as answers: ranges that join to the whole, tags that spare a transfer."""

import asyncio
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import Response

from serve.artefacts import ArtefactStore
from serve.content import byte_range, content_response
from serve.errors import NotFound

NAME = "video_1.mp4"
DATA = os.urandom(5000)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtefactStore:
    found = ArtefactStore(str(tmp_path_factory.mktemp("artefacts")))
    with found.writing(NAME) as path:
        path.write_bytes(DATA)
    return found


def answered(store: ArtefactStore, headers: dict[str, str] | None = None, name: str = NAME) -> tuple[Response, bytes]:
    response = content_response(headers or {}, store, name, etag="tag", media_type="video/mp4", filename="fox.mp4")
    body = bytearray()

    async def run() -> None:
        async def receive() -> dict[str, str]:
            await asyncio.sleep(3600)
            return {"type": "http.disconnect"}

        async def send(message: dict[str, bytes]) -> None:
            body.extend(message.get("body", b""))

        await response({"type": "http", "method": "GET", "headers": []}, receive, send)  # pyright: ignore

    asyncio.run(run())
    return response, bytes(body)


def test_the_whole(store: ArtefactStore) -> None:
    response, body = answered(store)
    assert response.status_code == 200 and body == DATA
    assert response.headers["etag"] == '"tag"' and response.headers["content-length"] == "5000"
    assert response.headers["content-disposition"] == 'attachment; filename="fox.mp4"'


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("bytes=0-0", 0, 1), ("bytes=10-19", 10, 20), ("bytes=4990-", 4990, 5000), ("bytes=-7", 4993, 5000),
     ("bytes=-99999", 0, 5000), ("bytes=4000-99999", 4000, 5000), ("bytes= 1 - 2 ", 1, 3)],
)  # fmt: skip
def test_a_range(store: ArtefactStore, asked: str, start: int, stop: int) -> None:
    response, body = answered(store, {"range": asked})
    assert response.status_code == 206 and body == DATA[start:stop]
    assert response.headers["content-range"] == f"bytes {start}-{stop - 1}/5000"
    assert response.headers["content-length"] == str(stop - start)


@pytest.mark.parametrize("asked", ["bytes=5000-", "bytes=9999-10000", "bytes=-0"])
def test_a_range_that_is_not_there(store: ArtefactStore, asked: str) -> None:
    response, body = answered(store, {"range": asked})
    assert response.status_code == 416 and not body and response.headers["content-range"] == "bytes */5000"


@pytest.mark.parametrize(
    "asked",
    ["bytes=5-2", "bytes=-", "bytes=a-b", "items=0-5", "bytes=0-1,3-4", "", "bytes=" + "9" * 40 + "-", "bytes=1٢-"],
)
def test_what_is_no_range_is_answered_with_the_whole(store: ArtefactStore, asked: str) -> None:
    assert answered(store, {"range": asked})[0].status_code == 200


@pytest.mark.parametrize("given", ['"tag"', 'W/"tag"', '"other", "tag"', "*"])
def test_who_has_it_is_not_sent_it_again(store: ArtefactStore, given: str) -> None:
    response, body = answered(store, {"if-none-match": given})
    assert response.status_code == 304 and not body and response.headers["etag"] == '"tag"'
    assert answered(store, {"if-none-match": '"other"'})[1] == DATA


def test_a_part_of_something_else_is_not_completed(store: ArtefactStore) -> None:
    assert answered(store, {"range": "bytes=1-2", "if-range": '"other"'})[0].status_code == 200
    assert answered(store, {"range": "bytes=1-2", "if-range": '"tag"'})[0].status_code == 206


def test_a_file_that_is_not_there(store: ArtefactStore) -> None:
    with pytest.raises(NotFound):
        answered(store, name="video_2.mp4")


@given(size=st.integers(1, 10_000), first=st.integers(0, 10_000), last=st.integers(0, 10_000))
def test_ranges_lie_within(size: int, first: int, last: int) -> None:
    for header in (f"bytes={first}-{last}", f"bytes={first}-", f"bytes=-{last}"):
        try:
            found = byte_range(header, size)
        except ValueError:
            assert first >= size or last == 0
            continue
        if found is not None:
            assert 0 <= found[0] < found[1] <= size
