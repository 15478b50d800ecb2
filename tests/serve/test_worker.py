"""A renderer's work on jobs: how each ends, whatever the pipeline, the store or the caller does."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from databases import Clock
from PIL import Image

from p2e.bases import open_base
from p2e.config import RenderConfig
from p2e.errors import InputError
from p2e.lora.lora import Factors, Lora
from p2e.lora.write import write_lora
from p2e.render.video import Clip
from serve.artefacts import ArtefactStore
from serve.counters import Counters
from serve.database import open_database
from serve.job import Job, JobSettings
from serve.jobs import JobStore
from serve.settings import RendererSettings
from serve.worker import HeldLoras, VideoWorker

WORLD = open_base("world")[0]
Step = Callable[[int], None]


class FakeClips:
    """Draws a clip in steps; `on_step` may do anything at each."""

    base = WORLD

    def __init__(self) -> None:
        self.on_step: Step = lambda _: None
        self.asked: list[dict[str, Any]] = []

    def render(self, image: Any, prompt: str | None = None, **options: Any) -> Clip:
        self.asked.append({"image": image, "prompt": prompt, **options})
        for step in range(1, options["steps"] + 1):
            self.on_step(step)
            options["callback"](step, options["steps"])
        return Clip(np.zeros((options["frames"], options["height"], options["width"], 3), np.uint8), 8.0)


class Place:
    """Stores in a folder, a worker on them, and a picture and a LoRA to work with."""

    def __init__(self, folder: Path, lease_s: float = 60, **settings: Any) -> None:
        engine = open_database(f"sqlite:///{folder / 'jobs.sqlite'}")
        self.clock, self.clips = Clock(), FakeClips()
        self.jobs = JobStore(engine, JobSettings(lease_s=lease_s), self.clock)
        self.artefacts = ArtefactStore(str(folder / "artefacts"))
        self.counters = Counters(engine, every_s=None)
        self.worker = VideoWorker(
            self.clips, self.jobs, self.artefacts, self.counters, RendererSettings(**settings), "host:1:x"
        )
        with self.artefacts.writing("picture_1.png") as path:
            Image.new("RGB", (48, 32)).save(path)
        site = WORLD.sites[0]
        for name in ("eff_1.safetensors", "eff_2.safetensors"):
            factors = Factors(torch.ones(2, site.d_in), torch.ones(site.d_out, 2))
            with self.artefacts.writing(name) as path:
                write_lora(path, Lora("world", {site.key: factors}), WORLD)

    def submit(self, lora: str | None = None) -> Job:
        clip = RenderConfig(height=32, width=48, frames=5, steps=4).model_dump(mode="json")
        request = {
            "prompt": "a fox",
            "clip": clip,
            "seed": 7,
            "strength": 0.5,
            "picture": "picture_1.png",
            "lora": lora,
        }
        effect = None if lora is None else lora.partition(".")[0]
        return self.jobs.submit("alice", request, steps=4, effect_id=effect)[0]

    def done(self, lora: str | None = None) -> Job:
        job = self.submit(lora)
        assert self.worker.work_once("ticket")
        return self.jobs.get(job.id)

    def counted(self, name: str, **labels: str) -> float:
        return self.counters.read().get(name, {}).get(tuple(sorted(labels.items())), 0)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_job_becomes_a_clip(place: Place) -> None:
    assert not place.worker.work_once()
    job = place.done("eff_1.safetensors")
    assert job.status == "completed" and job.artefact is not None and job.artefact.startswith(f"{job.id}-1-")
    with place.artefacts.open(job.artefact) as file:
        assert file.read(8)[4:] == b"ftyp"
    asked = place.clips.asked[0]
    assert (asked["prompt"], asked["seed"], asked["strength"], asked["frames"]) == ("a fox", 7, 0.5, 5)
    assert asked["lora"].base == "world" and asked["image"].size == (48, 32)
    assert place.counted("p2e_videos", status="completed", code="") == 1
    assert place.counted("p2e_render_seconds_sum") > 0


def test_loras_are_held(place: Place) -> None:
    for name in ("eff_1.safetensors", "eff_1.safetensors", "eff_2.safetensors", "eff_1.safetensors"):
        assert place.done(name).status == "completed"
    assert (place.counted("p2e_lora_loads"), place.counted("p2e_lora_hits")) == (2, 2)
    assert set(place.worker.held.effects) == {"eff_1", "eff_2"}
    assert place.clips.asked[0]["lora"] is place.clips.asked[3]["lora"]  # so that the slot need not be written again


def test_the_least_used_loras_go_first() -> None:
    def read(name: str) -> Lora:
        return Lora("world", {"a": Factors(torch.ones(1, 100), torch.ones(100, 1))})

    held = HeldLoras(read, most_bytes=1700)  # two of 800 bytes
    for name in ("a", "b", "a", "c"):
        held.get(name, name)
    assert held.effects == ["a", "c"]
    assert HeldLoras(read, most_bytes=1).get("x", "x")[0].base == "world"  # the one in use always stays


def test_cancelling_stops_at_the_next_step(place: Place) -> None:
    job = place.submit()
    place.clips.on_step = lambda step: place.jobs.cancel(job.id, "alice") if step == 2 else None  # pyright: ignore
    place.worker.work_once()
    found = place.jobs.get(job.id)
    assert (found.status, found.steps_done, found.artefact) == ("cancelled", 2, None)
    assert place.counted("p2e_videos", status="cancelled", code="") == 1
    place.clips.on_step = lambda _: None
    assert place.done().status == "completed"


def test_what_was_taken_away_is_not_ended_twice(place: Place) -> None:
    """The lease runs out at the last step; by the time that the clip is stored, the job is another's."""

    def taken(step: int) -> None:
        if step == 4:
            place.clock.now += 61
            place.jobs.sweep()
            assert place.jobs.claim("other") is not None

    job = place.submit()
    place.clips.on_step = taken
    place.worker.work_once()
    found = place.jobs.get(job.id)
    assert (found.status, found.worker, found.attempt) == ("in_progress", "other", 2)
    assert [name for name in place.artefacts.names() if name.endswith(".mp4")] == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (torch.OutOfMemoryError("no memory"), "out_of_memory"), (MemoryError(), "out_of_memory"),
        (InputError("/secret/x: not-a-number"), "cannot_render"), (RuntimeError("/secret/y"), "internal_error"),
        (KeyError("x"), "internal_error"),
    ],
)  # fmt: skip
def test_what_goes_wrong_has_a_word(place: Place, error: Exception, code: str) -> None:
    def fail(step: int) -> None:
        raise error

    place.clips.on_step = fail
    job = place.done()
    assert (job.status, job.error_code) == ("failed", code) and "secret" not in (job.error_message or "")
    assert place.counted("p2e_videos", status="failed", code=code) == 1
    place.clips.on_step = lambda _: None
    assert place.done().status == "completed"


def test_what_is_gone_is_said_to_be(place: Place) -> None:
    assert place.done("eff_9.safetensors").error_code == "effect_gone"
    with place.artefacts.writing("eff_3.safetensors") as path:
        path.write_bytes(b"\x80\x04 a pickle")
    assert place.done("eff_3.safetensors").error_code == "effect_gone"
    place.artefacts.remove("picture_1.png")
    assert place.done().error_code == "effect_gone"


def test_a_full_disk_is_said(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("serve.worker.write_mp4", full)
    assert place.done().error_code == "storage_failed"
    assert [name for name in place.artefacts.names() if name.endswith(".mp4")] == []


def test_long_steps_keep_the_lease(tmp_path: Path) -> None:
    """A step that takes longer than the lease: the heartbeat's thread renews it."""
    place = Place(tmp_path, lease_s=0.4)
    place.jobs.clock = place.clock = time.time  # pyright: ignore[reportAttributeAccessIssue]
    place.clips.on_step = lambda step: time.sleep(1.2) if step == 1 else None
    job = place.submit()
    ended = threading.Event()

    def sweeping() -> None:
        while not ended.wait(0.05):
            place.jobs.sweep()

    thread = threading.Thread(target=sweeping)
    thread.start()
    place.worker.work_once()
    ended.set()
    thread.join()
    assert (place.jobs.get(job.id).status, place.jobs.get(job.id).attempt) == ("completed", 1)


def test_a_job_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    place = Place(tmp_path, most_s=0.2)
    job = place.submit()
    seen = []

    def slow(step: int) -> None:
        time.sleep(0.35)
        seen.append(place.worker.stuck)

    place.clips.on_step = slow
    place.worker.work_once()
    assert seen == [True] and place.jobs.get(job.id).status == "in_progress"  # until its lease runs out
    assert not place.worker.stuck
