"""An open loop of requests, and what becomes of them: each is sent at its time, whether or not those before it have
been answered, so that a slow answer does not slow the questions down."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

__all__ = ["Answer", "open_loop", "percentiles"]


@dataclass(frozen=True)
class Answer:
    """Seconds from when a request was due to its last byte, its status (0: no answer), and its JSON."""

    seconds: float
    status: int
    body: dict[str, Any]


async def open_loop(
    send: Callable[[httpx.AsyncClient, int], Awaitable[httpx.Response]], rate: float, count: int, address: str
) -> list[Answer]:
    """Sends `count` requests, `rate` a second, evenly."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:
        start = time.perf_counter() + 0.1

        async def one(index: int) -> Answer:
            due = start + index / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            try:
                response = await send(client, index)
                kind = response.headers.get("content-type", "")
                body = response.json() if kind.startswith("application/json") else {}
                return Answer(time.perf_counter() - due, response.status_code, body)
            except httpx.HTTPError:
                return Answer(time.perf_counter() - due, 0, {})

        return list(await asyncio.gather(*(one(index) for index in range(count))))


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the most, of at least one value (the nearest rank)."""
    ordered = sorted(seconds)
    ranks = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    found = {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in ranks.items()}
    return found | {"most": ordered[-1]}
