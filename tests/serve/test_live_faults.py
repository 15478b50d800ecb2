"""Replicas, proxy and controller are killed at work: nothing that was accepted is lost, and nothing ends twice."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx
import pytest
from live import SHORT, SLOW, Live, ended, eventually, live_ray, new_video, processes
from local_ray import wait_until

from serve.jobs import JobStore

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_ray(tmp_path_factory.mktemp("faults"), renderers=2) as found:
        yield found


@pytest.fixture
def alice(live: Live) -> Iterator[httpx.Client]:
    """A caller of a service whose two renderers stand."""
    assert eventually(lambda: len(live.replicas("renderer")) == 2, 90)
    with live.caller() as caller:
        yield caller


def renderer_of(jobs: JobStore, video: str) -> int:
    """The process that has a job."""
    found = []

    def claimed() -> bool:
        job = jobs.get(video)
        if job.worker is not None and job.steps_done > 0:
            found.append(int(job.worker.split(":")[1]))
        return bool(found)

    wait_until(claimed, f"a renderer of {video}", 90)
    return found[0]


def test_a_killed_renderer_loses_no_job(live: Live, alice: httpx.Client) -> None:
    stores = live.stores
    hit, other = (new_video(alice, **SLOW).json()["id"] for _ in range(2))
    live.kill([renderer_of(stores.jobs, hit)])
    one, two = ended(alice, hit), ended(alice, other)
    assert (one["status"], one["attempt"]) == ("completed", 2)
    assert two["status"] == "completed" and two["attempt"] == 1
    files = [name for name in stores.artefacts.names() if name.startswith((hit, other))]
    assert len(files) == 2


def test_a_job_that_kills_twice_ends(live: Live, alice: httpx.Client) -> None:
    stores = live.stores
    video = new_video(alice, **SLOW).json()["id"]
    for attempt in (1, 2):
        wait_until(lambda attempt=attempt: stores.jobs.get(video).attempt == attempt, f"attempt {attempt}", 90)
        live.kill([renderer_of(stores.jobs, video)])
    found = ended(alice, video)
    assert (found["status"], found["error"]["code"]) == ("failed", "worker_died")
    assert [name for name in stores.artefacts.names() if name.startswith(video)] == []


def test_renderers_stuck_are_not_believed(live: Live, alice: httpx.Client) -> None:
    """A renderer that is stopped for longer than its lease, and then goes on, does not end a job that is another's."""
    import psutil

    stores = live.stores
    video = new_video(alice, **SLOW).json()["id"]
    number = psutil.Process(renderer_of(stores.jobs, video))
    number.suspend()
    wait_until(lambda: stores.jobs.get(video).attempt == 2, "another renderer", 60)
    number.resume()
    found = ended(alice, video)
    assert (found["status"], found["attempt"]) == ("completed", 2)
    time.sleep(2)  # by now the first has found out
    assert len([name for name in stores.artefacts.names() if name.startswith(video)]) == 1


def test_a_killed_predictor_costs_a_caller_nothing(live: Live, alice: httpx.Client) -> None:
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(alice.post, "/v1/effects", json={"prompt": f"it glows {i} times"}) for i in range(4)]
        time.sleep(0.5)
        live.kill(live.replicas("predictor"))
        codes = {future.result().status_code for future in asked}
    assert codes <= {201, 503}  # 503 with a Retry-After where no other predictor came in time
    wait_until(lambda: alice.get("/readyz").status_code == 200, "a predictor", 120)
    assert alice.post("/v1/effects", json={"prompt": "it glows 0 times"}).status_code == 201


def test_the_controller_the_dispatcher_and_the_proxy_are_killed(live: Live, alice: httpx.Client) -> None:
    videos = [new_video(alice, **SHORT).json()["id"] for _ in range(6)]
    live.kill(live.replicas("dispatcher"))
    live.kill(processes("ray::ServeController"))
    more = [new_video(alice, **SHORT).json()["id"] for _ in range(2)]  # the gateway does not need either
    for video in videos + more:
        assert ended(alice, video)["status"] == "completed"
    live.kill(processes("ray::ProxyActor"))

    def answers() -> bool:
        try:
            return alice.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    assert eventually(answers, 60)
    for video in videos + more:
        assert alice.get(f"/v1/videos/{video}/content").content[4:8] == b"ftyp"


def test_forty_jobs_under_kills(live: Live, alice: httpx.Client) -> None:
    stores = live.stores
    videos = [new_video(alice, seed=i, **SHORT).json()["id"] for i in range(40)]
    for _ in range(2):
        time.sleep(2)
        live.kill(live.replicas("renderer")[:1])
    states = [ended(alice, video, 180) for video in videos]
    lost = [state for state in states if state["status"] != "completed"]
    # A job whose renderer was killed both times ends with a word; the rest are all there, once.
    assert all(state["error"]["code"] == "worker_died" for state in lost) and len(lost) <= 1
    kept = {stores.jobs.get(state["id"]).artefact for state in states} - {None}
    assert len(kept) == len(videos) - len(lost) and kept <= set(stores.artefacts.names())


def test_a_new_version_takes_over_without_an_error(live: Live, alice: httpx.Client) -> None:
    """A long render outlives the change; whoever asks meanwhile is answered."""
    long = new_video(alice, **SLOW).json()["id"]
    wait_until(lambda: alice.get(f"/v1/videos/{long}").json()["progress"] > 0, "a first step", 60)
    deployed = Event()

    def ask() -> set[int]:
        codes = set()
        while not deployed.wait(0.05):
            codes.add(alice.get("/v1/videos").status_code)
        return codes

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            live.deploy(renderer={"scale": 2})
        finally:
            deployed.set()
        assert asking.result() == {200}
    found = ended(alice, long)
    assert (found["status"], found["attempt"]) == ("completed", 1)


def test_the_service_stops_and_starts_on_what_was_there(live: Live, alice: httpx.Client) -> None:
    stores = live.stores
    videos = [new_video(alice, **SLOW).json()["id"] for _ in range(3)]
    renderer_of(stores.jobs, videos[0])
    live.kill(live.replicas("renderer"))
    live.delete()
    assert stores.jobs.get(videos[2]).status in ("queued", "in_progress")
    live.deploy()
    for video in videos:
        found = ended(alice, video, 180)
        assert found["status"] == "completed" and found["attempt"] <= 2


def test_what_cannot_be_stored_fails_with_a_word(live: Live, alice: httpx.Client, tmp_path: Path) -> None:
    """The folder of files is gone: a job says so, and the service stands."""
    artefacts = live.folder / "artefacts"
    video = new_video(alice, **SLOW).json()["id"]
    renderer_of(live.stores.jobs, video)
    moved = live.folder / "moved"
    artefacts.rename(moved)
    artefacts.write_text("in the way")
    try:
        found = ended(alice, video)
        assert (found["status"], found["error"]["code"]) == ("failed", "storage_failed")
        answer = alice.post("/v1/effects", json={"prompt": "it freezes"})
        assert answer.status_code == 507 and "artefacts" not in answer.text
    finally:
        artefacts.unlink()
        moved.rename(artefacts)
    assert alice.post("/v1/effects", json={"prompt": "it freezes"}).status_code == 201
    assert ended(alice, new_video(alice, **SHORT).json()["id"])["status"] == "completed"


def test_a_service_that_cannot_start_says_so(live: Live) -> None:
    with pytest.raises(RuntimeError, match="p2e"):
        live.deploy(predictor={"checkpoint": "/nowhere"})
