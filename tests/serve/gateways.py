"""A gateway over stores in a folder and a predictor that writes small files at once."""

import asyncio
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from databases import Clock
from PIL import Image

from p2e.config import RenderConfig
from serve.artefacts import ArtefactStore
from serve.counters import Counters
from serve.database import open_database
from serve.effects import EffectStore
from serve.errors import ApiError
from serve.job import JobSettings
from serve.jobs import JobStore
from serve.keys import ApiKey, Keys, new_key
from serve.services import GatewaySettings, Identity, Made, NotReady, Services

__all__ = ["FakePredictor", "Overloaded", "picture", "services", "tokens"]

RENDER = RenderConfig(height=32, width=48, frames=9, steps=4)


class Overloaded(ApiError):
    """What a predictor may say."""

    status, code = 503, "overloaded"


@dataclass
class FakePredictor:
    """Stores the source itself; fails when it is told to."""

    artefacts: ArtefactStore
    made: list[Mapping[str, Any]] = field(default_factory=list)
    error: Exception | None = None
    loaded: bool = True
    pause_s: float = 0.0

    async def make(self, source: Mapping[str, Any], artefact: str, identity: Identity) -> Made:
        await asyncio.sleep(self.pause_s)
        if self.error is not None:
            raise self.error
        self.made.append(source)
        data = repr(sorted(source.items())).encode() * 10
        with self.artefacts.writing(artefact) as path:
            path.write_bytes(data)
        return Made(4, len(data), hashlib.sha256(data).hexdigest())

    async def identity(self) -> Identity:
        if not self.loaded:
            raise NotReady("weights are being loaded", retry_after_s=5)
        return Identity("base", "checkpoint")


tokens: dict[str, str] = {}


def keys(**limits: Any) -> Keys:
    """Of alice and bob; their keys are in `tokens`."""
    found = []
    for name in ("alice", "bob"):
        token, entry = new_key(name)
        tokens[name] = f"Bearer {token}"
        found.append(ApiKey(**entry.model_dump() | limits))
    return Keys(found)


def services(
    folder: Path, clock: Clock, *, jobs: JobSettings | None = None, limits: Mapping[str, Any] | None = None
) -> Services:
    engine = open_database(f"sqlite:///{folder / 'jobs.sqlite'}")
    artefacts = ArtefactStore(str(folder / "artefacts"))
    settings = GatewaySettings(render=RENDER, delete_wait_s=0.2, poll_s=0.01, events_s=2)
    return Services(
        settings, JobStore(engine, jobs or JobSettings(), clock), EffectStore(engine, clock), artefacts,
        FakePredictor(artefacts), Counters(engine, every_s=None), keys(**limits or {}),
    )  # fmt: skip


def picture(size: tuple[int, int] = (60, 40)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)).save(file, "PNG")
    return file.getvalue()
