"""The whole service on a Ray of the tests' own: real proxies, replicas, world, database and files."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from gateways import picture
from local_ray import local_ray, wait_until

from eval.speed.serve import processes
from serve.app import AppArgs, application
from serve.keys import new_key
from serve.stores import Stores, open_stores
from serve.up import free_port

__all__ = [
    "BODY_BYTES",
    "BODY_TIMEOUT_S",
    "QUEUE",
    "SHORT",
    "SLOW",
    "Live",
    "ended",
    "eventually",
    "live_ray",
    "new_video",
    "processes",
]

BODY_BYTES = 300_000
BODY_TIMEOUT_S = 3
QUEUE = 150
SHORT: dict[str, Any] = {"num_frames": 5, "num_inference_steps": 2}
SLOW: dict[str, Any] = {"num_frames": 9, "num_inference_steps": 50}
SMALL = {"num_cpus": 0.1}


@dataclass
class Live:
    """A running service.

    Attributes:
        address: of its proxy.
        folder: of its database and files.
        tokens: the keys of alice and bob.
        args: what it was built with.
    """

    address: str
    folder: Path
    tokens: dict[str, str]
    args: AppArgs
    options: dict[str, dict[str, Any]]

    @property
    def stores(self) -> Stores:
        """Its stores, opened from here."""
        return open_stores(self.args.store)

    def caller(self, name: str = "alice") -> httpx.Client:
        headers = {"authorization": f"Bearer {self.tokens[name]}"}
        return httpx.Client(base_url=self.address, headers=headers, timeout=120)

    def deploy(self, **changes: Any) -> None:
        """Starts the service, or puts another in its place."""
        from ray import serve

        args = AppArgs.parse(self.args.model_dump() | changes)
        serve.run(application(args, self.options), name="p2e", route_prefix="/")
        with self.caller() as caller:
            wait_until(lambda: caller.get("/readyz").status_code == 200, "weights", 120)

    def delete(self) -> None:
        from ray import serve

        serve.delete("p2e")

    def replicas(self, deployment: str) -> list[int]:
        """Process numbers of a deployment's replicas; only among what this process's own Ray has started."""
        return processes(f"ray::ServeReplica:p2e:{deployment}")

    def kill(self, numbers: list[int]) -> None:
        for number in numbers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


def new_video(caller: httpx.Client, *, headers: Mapping[str, str] | None = None, **fields: Any) -> httpx.Response:
    """Asks for a video of a form."""
    data = {"prompt": "a fox", **{name: str(value) for name, value in fields.items()}}
    files = {"input_reference": ("x.png", picture(), "image/png")}
    return caller.post("/v1/videos", data=data, files=files, headers=headers)


def ended(caller: httpx.Client, job_id: str, seconds: float = 120) -> dict[str, Any]:
    """The video once it has ended."""
    video: dict[str, Any] = {}

    def over() -> bool:
        video.update(caller.get(f"/v1/videos/{job_id}").json())
        return video["status"] not in ("queued", "in_progress")

    wait_until(over, f"the end of {job_id}", seconds)
    return video


@contextlib.contextmanager
def live_ray(
    folder: Path, *, renderers: int = 1, options: Mapping[str, Mapping[str, Any]] | None = None, **changes: Any
) -> Iterator[Live]:
    """A Ray with Serve's proxy on a free port, and the service on it, with keys of two owners.

    Args:
        renderers: how many.
        options: of deployments.
        changes: fields of AppArgs.
    """
    from ray import serve

    tokens, entries = {}, []
    for name in ("alice", "bob"):
        tokens[name], entry = new_key(name)
        entries.append(entry.model_dump() | {"jobs": 400, "effects_per_minute": 1000})
    keys = folder / "keys.yaml"
    keys.write_text(yaml.safe_dump({"keys": entries}))
    port = free_port()
    store = {
        "database": f"sqlite:///{folder / 'p2e.sqlite'}", "artefacts": str(folder / "artefacts"),
        "jobs": {"lease_s": 4, "queue_limit": QUEUE},
    }  # fmt: skip
    values: dict[str, Any] = {
        "store": store, "keys": str(keys), "dispatcher": {"tick_s": 0.1, "sweep_s": 0.5},
        "gateway": {"delete_wait_s": 20, "poll_s": 0.1, "limits": {"frames": 33, "steps": 50, "pixels": 36864}},
    }  # fmt: skip
    placed: dict[str, dict[str, Any]] = {
        name: {"ray_actor_options": SMALL} for name in ("gateway", "predictor", "renderer", "dispatcher")
    }
    placed["renderer"]["num_replicas"] = renderers
    for name, more in (options or {}).items():
        placed[name] |= more
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "serve.edge:proxy_middlewares")
        patch.setenv("P2E_MAX_BODY_BYTES", str(BODY_BYTES))
        patch.setenv("P2E_BODY_TIMEOUT_S", str(BODY_TIMEOUT_S))
        patch.setenv("RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "1")
        with local_ray():
            serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": 120})
            args = AppArgs.parse(values | changes)
            found = Live(f"http://127.0.0.1:{port}", folder, tokens, args, placed)
            try:
                found.deploy()
                yield found
            finally:
                serve.shutdown()


def eventually(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it comes true within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
