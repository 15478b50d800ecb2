"""The first thing that a request meets: no header of Serve's own comes in, and no body larger or slower than allowed.

It stands before Serve's proxy (as one of its HTTP middlewares), which would otherwise obey a client that switches
timeouts off, and before the gateway, which may also run without Serve.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serve.errors import ApiError

__all__ = ["STRIPPED", "BodyTooLarge", "BodyTooSlow", "Edge", "proxy_middlewares"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Serve's proxy reads these from any client: a timeout of zero or less is none, and a job would outlive its caller.
STRIPPED = frozenset({b"x-request-timeout-seconds", b"x-request-disconnect-disabled"})


class BodyTooLarge(ApiError):
    """More bytes than a request may have."""

    status, code = 413, "body_too_large"


class BodyTooSlow(ApiError):
    """The body did not come in time."""

    status, code = 408, "body_too_slow"


class Edge:
    """ASGI middleware.

    Args:
        app: what comes behind it.
        max_body_bytes: of a request, counted as they come: what a header says of them is not believed.
        body_timeout_s: from the first byte asked for to the last.
    """

    def __init__(self, app: App, max_body_bytes: int = 16 << 20, body_timeout_s: float = 60) -> None:
        self.app, self.max_body_bytes, self.body_timeout_s = app, max_body_bytes, body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name.lower() not in STRIPPED]
        body = _Body(receive, self.max_body_bytes, self.body_timeout_s)
        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            if body.refusal is not None:
                return  # whatever the application makes of a body that broke off
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        if (declared := _declared(scope)) is not None and declared > self.max_body_bytes:
            await _refuse(body.too_large(), send)
            return
        try:
            await self.app(scope, body.receive, answer)
        except Exception:
            if body.refusal is None:
                raise
        if body.refusal is not None and not begun:
            await _refuse(body.refusal, send)


def proxy_middlewares() -> list[Any]:
    """For Serve's proxies: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve.edge:proxy_middlewares in the environment
    that Ray is started with. P2E_MAX_BODY_BYTES and P2E_BODY_TIMEOUT_S may set other limits there."""
    from starlette.middleware import Middleware

    return [
        Middleware(
            Edge,  # pyright: ignore[reportArgumentType]
            max_body_bytes=int(os.environ.get("P2E_MAX_BODY_BYTES", 16 << 20)),
            body_timeout_s=float(os.environ.get("P2E_BODY_TIMEOUT_S", 60)),
        )
    ]


class _Body:
    """Passes a body on until it is too large or too slow; then the application finds its client gone."""

    def __init__(self, receive: Receive, most: int, timeout_s: float) -> None:
        self._receive, self._most, self._timeout_s = receive, most, timeout_s
        self._count, self._deadline, self._whole = 0, 0.0, False
        self.refusal: ApiError | None = None

    def too_large(self) -> ApiError:
        self.refusal = BodyTooLarge(f"the request is larger than {self._most} bytes; send a smaller picture")
        return self.refusal

    async def receive(self) -> Message:
        if self.refusal is not None:
            return {"type": "http.disconnect"}
        if self._whole:
            return await self._receive()
        now = asyncio.get_running_loop().time()
        self._deadline = self._deadline or now + self._timeout_s
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._deadline - now))
        except TimeoutError:
            self.refusal = BodyTooSlow(f"the request did not come within {self._timeout_s:g} s; send it again")
            return {"type": "http.disconnect"}
        if message["type"] == "http.request":
            self._count += len(message.get("body", b""))
            if self._count > self._most:
                self.too_large()
                return {"type": "http.disconnect"}
            self._whole = not message.get("more_body", False)
        return message


def _declared(scope: Scope) -> int | None:
    values = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
    return int(values[0]) if values and values[0].isdigit() else None


async def _refuse(error: ApiError, send: Send) -> None:
    body = json.dumps(error.envelope).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
               (b"connection", b"close")]  # fmt: skip
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
