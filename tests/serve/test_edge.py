"""The edge before an application: what a body may weigh and take, and headers that must not come in."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from serve.edge import Edge, Message


async def echo(request: Request) -> JSONResponse:
    body = await request.body()
    return JSONResponse({"bytes": len(body), "headers": sorted(request.headers)})


APP = Edge(Starlette(routes=[Route("/", echo, methods=["GET", "POST"])]), max_body_bytes=1000, body_timeout_s=0.2)  # pyright: ignore


async def chunks(*parts: bytes, pause_s: float = 0.0) -> AsyncIterator[bytes]:
    for part in parts:
        await asyncio.sleep(pause_s)
        yield part


def asked(body: AsyncIterator[bytes], headers: dict[str, str] | None = None, app: Any = APP) -> tuple[int, Any, int]:
    """Sends a body -> status, answer, and how many bytes were taken."""
    taken, sent = 0, []

    async def receive() -> Message:
        nonlocal taken
        try:
            part = await anext(body)
        except StopAsyncIteration:
            return {"type": "http.request", "body": b"", "more_body": False}
        taken += len(part)
        return {"type": "http.request", "body": part, "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "raw_path": b"/", "query_string": b"",
             "http_version": "1.1",
             "headers": [(k.encode(), v.encode()) for k, v in (headers or {}).items()]}  # fmt: skip
    asyncio.run(app(scope, receive, send))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    return sent[0]["status"], json.loads(sent[1]["body"]), taken


def test_what_is_allowed_comes_through() -> None:
    status, answer, taken = asked(chunks(b"x" * 500, b"y" * 500), {"x-other": "1"})
    assert (status, answer["bytes"], taken) == (200, 1000, 1000) and answer["headers"] == ["x-other"]


def test_headers_of_serve_do_not_come_in() -> None:
    headers = {"x-request-timeout-seconds": "0", "X-Request-Disconnect-Disabled": "?1", "x-request-id": "7"}
    assert asked(chunks(b""), headers)[1]["headers"] == ["x-request-id"]


def test_a_declared_body_is_refused_before_it_comes() -> None:
    status, answer, taken = asked(chunks(b"x" * 5000), {"content-length": "5000"})
    assert (status, answer["error"]["code"], taken) == (413, "body_too_large", 0)


@pytest.mark.parametrize("headers", [{}, {"content-length": "10"}, {"content-length": "-5"}, {"content-length": "ten"}])
def test_an_endless_body_is_cut_off(headers: dict[str, str]) -> None:
    status, answer, taken = asked(chunks(*[b"x" * 400] * 1000), headers)
    assert (status, answer["error"]["code"], taken) == (413, "body_too_large", 1200)
    assert answer["error"]["type"] == "invalid_request_error"


def test_a_slow_body_is_cut_off() -> None:
    status, answer, taken = asked(chunks(*[b"x"] * 100, pause_s=0.05))
    assert (status, answer["error"]["code"]) == (408, "body_too_slow") and taken < 10


def test_errors_of_the_application_are_its_own() -> None:
    async def broken(_scope: Any, _receive: Any, _send: Any) -> None:
        raise RuntimeError("of the application")

    with pytest.raises(RuntimeError, match="of the application"):
        asked(chunks(b""), app=Edge(broken))


def test_what_is_no_request_passes() -> None:
    seen = []

    async def inner(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(scope)

    scope = {"type": "lifespan"}
    asyncio.run(Edge(inner)(scope, None, None))  # pyright: ignore
    assert seen == [scope]
