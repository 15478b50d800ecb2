"""The document of the service without a service, and videos in all states for requests that need one."""

from typing import Any

from gateways import FakePredictor
from sqlalchemy import create_engine

from serve.artefacts import ArtefactStore
from serve.counters import Counters
from serve.effects import EffectStore
from serve.gateway import build_app
from serve.job import Status
from serve.jobs import JobStore
from serve.services import GatewaySettings, Services

__all__ = ["a_video", "document"]


def document() -> dict[str, Any]:
    """What the service says of itself; nothing is opened for it."""
    engine, artefacts = create_engine("sqlite://"), ArtefactStore("memory://contract")
    nothing = Services(
        GatewaySettings(), JobStore(engine), EffectStore(engine), artefacts, FakePredictor(artefacts),
        Counters(engine, every_s=None),
    )  # fmt: skip
    return build_app(nothing).openapi()


def a_video(made: Services, state: Status) -> str:
    """The id of a new video of alice's in a state; those before it that waited are ended."""
    clip = made.settings.render.model_dump(mode="json")
    jobs = made.jobs
    job, _ = jobs.submit("alice", {"prompt": "a fox", "clip": clip, "seed": 1}, steps=4)
    if state == "cancelled":
        jobs.cancel(job.id, "alice")
    elif state != "queued":
        while (running := jobs.claim("r")) is not None and running.id != job.id:
            assert jobs.stop(running)
        assert running is not None
        if state == "completed":
            name = f"{job.id}-1.mp4"
            with made.artefacts.writing(name) as path:
                path.write_bytes(b"a video")
            assert jobs.complete(running, name)
        elif state == "failed":
            assert jobs.fail(running, "oom", "out of memory")
    return job.id
