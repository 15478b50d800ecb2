"""What nobody needs goes, what anybody may still need stays, whoever sweeps and whatever is recorded meanwhile."""

import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from p2e.errors import ConfigError, OutputError
from serve.artefacts import ArtefactStore
from serve.database import open_database
from serve.effects import Effect, EffectStore, artefact_name, effect_id
from serve.errors import Conflict, NotFound
from serve.job import Job, JobSettings
from serve.jobs import JobStore
from serve.retention import Removed, Retention, RetentionSettings

HOUR = 3600.0
NOTHING = Removed([], [], [])


class Place:
    """Stores whose clock runs from now on, since files have the computer's times."""

    def __init__(self, database: str, folder: Path, **settings: Any) -> None:
        self.ahead = 0.0
        self.folder = folder / "artefacts"
        engine = open_database(database)
        self.jobs = JobStore(engine, JobSettings(lease_s=1e6, keep_s=1e6, queue_limit=500, owner_limit=500), self.clock)
        self.effects = EffectStore(engine, self.clock)
        self.artefacts = ArtefactStore(str(self.folder), self.clock)
        self.retention = Retention(self.jobs, self.effects, self.artefacts, RetentionSettings.parse(settings))

    def clock(self) -> float:
        return time.time() + self.ahead

    def file(self, name: str, age: float = 0) -> str:
        path = self.folder / name
        path.write_bytes(b"x")
        at = self.clock() - age
        os.utime(path, (at, at))
        return name

    def effect(self, prompt: str, owner: str = "a") -> Effect:
        name = effect_id({"prompt": prompt}, "c", "b")
        found = Effect(
            name, {"prompt": prompt}, "b", "c", 4, 1, "0" * 64, self.file(artefact_name(name)), 0.5, self.clock()
        )
        return self.effects.add(found, owner)

    def job(self, name: str, effect: Effect | None = None, owner: str = "a") -> Job:
        request = {"picture": self.file(f"picture_{name}.png"), "lora": effect and effect.artefact}
        identity = effect and effect.id
        return self.jobs.submit(owner, request, steps=4, effect_id=identity, lora=effect and effect.artefact)[0]

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def make(database: str, tmp_path: Path) -> Callable[..., Place]:
    return lambda **settings: Place(database, tmp_path, **settings)


def test_files_of_no_record_go_once_they_are_old(make: Callable[..., Place]) -> None:
    place = make()
    old = [place.file(name, HOUR + 60) for name in ("eff_0-1.safetensors", "picture_0.png", "video_0-1.mp4")]
    young = [place.file(name, HOUR - 60) for name in ("eff_1-1.safetensors", "picture_1.png", "video_1-1.mp4")]
    part = place.file(".video_2-1.mp4.0a1b2c3d.mp4", HOUR + 60)
    written = place.file(".video_3-1.mp4.0a1b2c3d.mp4", HOUR - 60)
    strange = place.file("not ours", HOUR * 99)
    assert place.retention.sweep() == Removed([], old, [part]) and place.retention.sweep() == NOTHING
    assert place.names() == sorted([*young, written, strange])


def test_a_real_half_written_file_is_known_for_one(make: Callable[..., Place]) -> None:
    place = make()
    # Its writer, if it lives after all, is told.
    with pytest.raises(OutputError), place.artefacts.writing("video_0-1.mp4") as path:
        path.write_bytes(b"half")
        place.ahead = HOUR + 60
        assert place.retention.sweep() == Removed([], [], [path.name])


def test_what_a_record_names_stays(make: Callable[..., Place]) -> None:
    place = make()
    effect = place.effect("it melts")
    waiting, running, done = (place.job(name, effect) for name in ("waiting", "running", "done"))
    mine = [place.jobs.claim("r") for _ in range(3)]
    place.jobs.complete(next(job for job in mine if job and job.id == done.id), place.file(f"{done.id}-1.mp4"))
    lost = place.file(f"{running.id}-1.mp4")  # rendered, and about to be recorded for longer than the grace
    place.ahead = HOUR * 5
    assert place.retention.sweep() == Removed([], ["picture_done.png"], [])
    assert place.names() == sorted(
        [effect.artefact, "picture_waiting.png", "picture_running.png", f"{done.id}-1.mp4", lost]
    )
    assert place.jobs.complete(next(job for job in mine if job and job.id == running.id), lost)
    assert place.retention.sweep() == NOTHING  # its picture outlives it by the grace
    place.ahead += HOUR + 60
    assert place.retention.sweep().orphans == ["picture_running.png"]
    assert place.jobs.get(waiting.id).request["picture"] in place.names()
    place.ahead += 2e6  # what expires is the job store's to name; whoever dies before removing it leaves it to this
    assert place.jobs.sweep().artefacts and set(place.retention.sweep().orphans) == {lost, f"{done.id}-1.mp4"}


def test_files_of_dropped_effects_and_lost_attempts_go(make: Callable[..., Place]) -> None:
    place = make()
    effect, job = place.effect("it melts"), place.job("a")
    assert place.effects.drop(effect.id, "a") == effect.artefact  # and the caller dies
    half = place.file(f"{job.id}-1.mp4")
    place.ahead = HOUR + 60
    assert place.retention.sweep().orphans == [effect.artefact]
    place.jobs.cancel(job.id, "a")
    assert place.retention.sweep().orphans == [half]
    place.ahead += HOUR + 60
    assert place.retention.sweep().orphans == ["picture_a.png"] and place.names() == []


def test_the_lora_of_a_video_stays_whatever_became_of_its_effect(make: Callable[..., Place]) -> None:
    place = make()
    lora = place.file("eff_0-1.safetensors")
    job = place.jobs.submit("a", {"lora": lora}, steps=4)[0]
    place.ahead = HOUR + 60
    assert place.retention.sweep() == NOTHING
    place.jobs.cancel(job.id, "a")
    assert place.retention.sweep().orphans == [lora]


def test_effects_that_nobody_uses_expire_where_that_is_wished(make: Callable[..., Place]) -> None:
    place = make(effects_keep_s=10 * HOUR)
    unused, asked, rendered, waiting = (place.effect(name) for name in ("unused", "asked", "rendered", "waiting"))
    place.effects.ask(unused.id, "b")
    place.job("w", waiting)
    place.ahead = 6 * HOUR
    assert place.retention.sweep() == NOTHING
    assert place.effects.ask(asked.id, "a") == asked
    place.jobs.cancel(place.job("r", rendered).id, "a")
    place.ahead = 11 * HOUR
    assert place.retention.sweep().expired == [unused.artefact]
    for owner in ("a", "b"):
        with pytest.raises(NotFound):
            place.effects.get(unused.id, owner)
    assert place.effects.ask(unused.id, "a") is None and unused.artefact not in place.names()
    assert (
        place.effects.get(waiting.id, "a") and place.effects.get(asked.id, "a") and place.effects.get(rendered.id, "a")
    )
    place.ahead = 17 * HOUR
    assert set(place.retention.sweep().expired) == {asked.artefact, rendered.artefact}


def test_an_effect_is_not_dropped_under_a_video(make: Callable[..., Place]) -> None:
    place = make()
    effect = place.effect("it melts")
    job = place.job("a", effect)
    with pytest.raises(Conflict, match="have not ended"):
        place.effects.drop(effect.id, "a")
    place.effects.ask(effect.id, "b")
    assert place.effects.drop(effect.id, "b") is None  # b has no video with it
    place.jobs.cancel(job.id, "a")
    assert place.effects.drop(effect.id, "a") == effect.artefact
    for owner in ("a", "b"):  # who looked it up before it went
        with pytest.raises(NotFound, match=effect.id):
            place.job("b", effect, owner)
    again = place.effect("it melts")
    with pytest.raises(NotFound):
        place.job("c", effect)  # its file is not that of the one before
    assert place.job("d", again).status == "queued"


def test_dropping_and_submitting_at_once_leaves_no_video_without_its_effect(make: Callable[..., Place]) -> None:
    place, together = make(effects_keep_s=HOUR), threading.Barrier(4)
    outcomes: set[str] = set()
    rendering = {0, 1}

    def renders(index: int) -> None:
        for turn in range(12):
            effect = place.effect("it melts", f"owner-{index}")
            try:
                job = place.job(f"{index}-{turn}", effect, f"owner-{index}")
            except NotFound:
                outcomes.add("gone")
                continue
            assert place.effects.get(effect.id, f"owner-{index}").artefact == effect.artefact
            assert effect.artefact in place.artefacts.names()
            place.jobs.cancel(job.id, f"owner-{index}")
        rendering.discard(index)

    def drops(index: int) -> None:
        chance, last = random.Random(index), False
        while not last:
            last = not rendering  # and once more, when no video keeps any effect
            for effect in place.effects.page(
                owner := f"owner-{chance.randrange(2) if not last else index - 2}"
            ).effects:
                try:
                    if (artefact := place.effects.drop(effect.id, owner)) is not None:
                        place.artefacts.remove(artefact)
                    outcomes.add("dropped")
                except Conflict:
                    outcomes.add("kept")
                except NotFound:
                    pass

    def go(index: int) -> None:
        together.wait()
        (renders if index < 2 else drops)(index)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(go, range(4)))
    assert "dropped" in outcomes


def test_sweepers_and_writers_at_once(make: Callable[..., Place]) -> None:
    """Old rubbish goes, whoever finds it first; nothing that is written and recorded meanwhile does."""
    place, over = make(), threading.Event()
    rubbish = [place.file(f"video_old{i}-1.mp4", 2 * HOUR) for i in range(40)]
    removed: list[str] = []

    def sweeps() -> None:
        while not over.is_set():
            removed.extend(place.retention.sweep().orphans)

    def writes(index: int) -> list[str]:
        kept = []
        for turn in range(10):
            effect = place.effect(f"effect {index} {turn}")
            job = place.job(f"{index}-{turn}", effect)
            kept += [effect.artefact, job.request["picture"]]
        return kept

    with ThreadPoolExecutor(6) as pool:
        sweepers = [pool.submit(sweeps) for _ in range(3)]
        try:
            kept = [name for names in pool.map(writes, range(3)) for name in names]
        finally:
            over.set()
        for sweeper in sweepers:
            sweeper.result()
    place.retention.sweep()
    assert set(removed) == set(rubbish) and sorted(kept) == place.names()


def test_a_file_that_is_recorded_while_a_sweeper_looks_stays(
    make: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make()
    job = place.job("a")
    mine = place.jobs.claim("r")
    late = place.file(f"{job.id}-1.mp4", 5 * HOUR)
    orphan = place.file("video_0-1.mp4", 5 * HOUR)
    assert mine is not None
    names = place.artefacts.names

    def recorded_meanwhile() -> list[str]:
        found = names()
        assert place.jobs.complete(mine, late)
        return found

    monkeypatch.setattr(place.artefacts, "names", recorded_meanwhile)
    assert place.retention.sweep().orphans == [orphan] and late in place.names()


def test_settings_that_would_remove_what_is_being_written() -> None:
    for values in ({"grace_s": 1}, {"effects_keep_s": 60}, {"keep": 1}):
        with pytest.raises(ConfigError):
            RetentionSettings.parse(values)
