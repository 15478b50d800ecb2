"""A gateway under uvicorn on a free port, and a renderer's part played by a thread: it claims jobs, beats their steps
and completes them with small real clips."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn

from p2e.render.video import Clip, write_mp4
from serve.edge import Edge
from serve.gateway import build_app
from serve.job import Beat, Job
from serve.services import Services

__all__ = ["Running", "Worker", "plain_clip", "running"]


def plain_clip(job: Job) -> Clip:
    """A clip of the size and length that a job asks for: a colour by its seed that gets brighter."""
    clip = job.request["clip"]
    levels = np.linspace(60, 200, clip["frames"]).astype(np.uint8)
    frames = np.zeros((clip["frames"], clip["height"], clip["width"], 3), np.uint8)
    frames[..., job.request["seed"] % 3] = levels[:, None, None]
    return Clip(frames, clip["fps"])


@dataclass
class Worker:
    """Does jobs until it is stopped.

    Attributes:
        step_s: seconds that a step takes.
        draw: a job's clip.
        go: cleared, no job is claimed, and one under way stands still.
        failing: code and message that jobs fail with, if any.
        done: jobs that have been completed.
    """

    services: Services
    step_s: float = 0.03
    draw: Callable[[Job], Clip] = plain_clip
    go: threading.Event = field(default_factory=threading.Event)
    failing: tuple[str, str] | None = None
    done: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.go.set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="worker")
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        self.go.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._end.is_set():
            job = self.services.jobs.claim("worker") if self.go.is_set() else None
            if job is None:
                self._end.wait(0.01)
            else:
                self._do(job)

    def _do(self, job: Job) -> None:
        jobs, artefacts = self.services.jobs, self.services.artefacts
        step = 0
        while step < job.steps and not self._end.is_set():
            time.sleep(self.step_s)
            step += self.go.is_set()
            if jobs.beat(job, step) is not Beat.GO:
                jobs.stop(job)
                return
        if self.failing is not None:
            jobs.fail(job, *self.failing)
            return
        name = f"{job.id}-{job.attempt}.mp4"
        with artefacts.writing(name) as path:
            write_mp4(path, self.draw(job))
        jobs.complete(job, name)
        self.done.append(job)


@dataclass
class Running:
    """A service that answers.

    Attributes:
        address: http://127.0.0.1:PORT
        served: requests that each of its gateways has had.
    """

    address: str
    services: Services
    worker: Worker
    served: list[int]


class _InTurn:
    """ASGI: each request meets the next of several gateways."""

    def __init__(self, services: Services, replicas: int) -> None:
        self._apps = [Edge(build_app(services)) for _ in range(replicas)]  # pyright: ignore[reportArgumentType]
        self.served = [0] * replicas

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        number = sum(self.served) % len(self._apps)
        if scope["type"] == "http":
            self.served[number] += 1
        await self._apps[number](scope, receive, send)


@contextmanager
def running(services: Services, *, replicas: int = 1, **worker: Any) -> Iterator[Running]:
    """Runs gateways over services, and a worker with the settings given."""
    app = _InTurn(services, replicas)
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="warning", lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="gateway")
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the gateway did not start")
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        rendering = Worker(services, **worker)
        try:
            yield Running(f"http://127.0.0.1:{port}", services, rendering, app.served)
        finally:
            rendering.close()
    finally:
        server.should_exit = True
        thread.join()
