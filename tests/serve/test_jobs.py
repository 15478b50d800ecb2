"""Jobs: one claimer each, leases, one end each, limits, keys; on SQLite and on a real PostgreSQL."""

import multiprocessing
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from databases import Clock
from sqlalchemy import text

from p2e.errors import ConfigError
from serve.database import open_database
from serve.errors import Conflict, KeyReused, NotFound, QueueFull, QuotaExceeded
from serve.job import Beat, Idempotency, Job, JobSettings
from serve.jobs import JobStore

REQUEST = {"prompt": "a fox", "seed": 3}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: str, clock: Clock) -> JobStore:
    settings = JobSettings(queue_limit=5, owner_limit=4, lease_s=60, affinity_wait_s=30, keep_s=1000, remember_s=5000)
    return JobStore(open_database(database), settings, clock)


def submitted(store: JobStore, owner: str = "a", **options: object) -> Job:
    return store.submit(owner, REQUEST, **{"steps": 10, **options})[0]  # pyright: ignore


def test_a_job_goes_its_way(store: JobStore, clock: Clock) -> None:
    job = submitted(store)
    assert job.status == "queued" and job.request == REQUEST and job.progress == 0 and job.created_at == 1000
    clock.now += 5
    mine = store.claim("renderer-1")
    assert mine is not None and (mine.id, mine.status, mine.attempt, mine.started_at) == (
        job.id,
        "in_progress",
        1,
        1005,
    )
    assert store.claim("renderer-2") is None
    clock.now += 50
    assert store.beat(mine, 4) is Beat.GO and store.beat(mine, 3) is Beat.GO  # a late word does not turn it back
    assert store.get(job.id, "a").progress == 40 and store.get(job.id).lease_until == 1115
    assert store.complete(mine, "video_1.mp4")
    done = store.get(job.id, "a")
    assert (done.status, done.progress, done.artefact, done.ended_at, done.expires_at) == (
        "completed", 100, "video_1.mp4", 1055, 2055,
    )  # fmt: skip
    assert not store.fail(mine, "x", "y") and not store.complete(mine, "other.mp4") and not store.stop(mine)
    assert store.beat(mine, 9) is Beat.LOST and store.get(job.id) == done
    assert store.depth() == {"completed": 1}


def test_a_lost_renderer_costs_one_attempt_and_then_the_job(store: JobStore, clock: Clock) -> None:
    job = submitted(store)
    first = store.claim("r1")
    assert first is not None
    store.beat(first, 7)
    clock.now += 61
    assert store.sweep().requeued == [job.id]
    again = store.get(job.id)
    assert again.status == "queued" and again.worker is None
    second = store.claim("r2")
    assert second is not None and second.attempt == 2 and store.get(job.id).steps_done == 0
    # The first was only slow: nothing that it says counts any more.
    assert (
        store.beat(first, 8) is Beat.LOST and not store.complete(first, "late.mp4") and not store.fail(first, "x", "")
    )
    clock.now += 61
    swept = store.sweep()
    assert swept.failed == [job.id] and not swept.requeued
    ended = store.get(job.id)
    assert (ended.status, ended.error_code) == ("failed", "worker_died")
    assert not store.complete(second, "late.mp4") and not store.sweep().failed


def test_a_heartbeat_keeps_a_job(store: JobStore, clock: Clock) -> None:
    job = submitted(store)
    mine = store.claim("r1")
    assert mine is not None
    for _ in range(5):
        clock.now += 50
        assert store.beat(mine, 1) is Beat.GO and not store.sweep().requeued
    assert store.get(job.id).worker == "r1"


def test_cancelling(store: JobStore, clock: Clock) -> None:
    waiting, running, done, lost = (submitted(store) for _ in range(4))
    assert store.cancel(waiting.id, "a").status == "cancelled"
    assert store.cancel(waiting.id, "a").status == "cancelled"  # again is the same
    mine = {}
    for _ in range(3):
        job = store.claim("r")
        assert job is not None
        mine[job.id] = job
    assert waiting.id not in mine
    assert store.cancel(running.id, "a").status == "in_progress"
    assert store.beat(mine[running.id], 2) is Beat.CANCEL and store.stop(mine[running.id])
    assert store.get(running.id).status == "cancelled"
    store.complete(mine[done.id], "x.mp4")
    with pytest.raises(Conflict, match="is completed already"):
        store.cancel(done.id, "a")
    store.cancel(lost.id, "a")  # and its renderer dies: it is not begun again
    clock.now += 61
    assert store.sweep().cancelled == [lost.id] and store.get(lost.id).status == "cancelled"


def test_a_job_that_was_done_before_it_heard_of_a_cancel_is_complete(store: JobStore) -> None:
    job = submitted(store)
    mine = store.claim("r")
    assert mine is not None
    store.cancel(job.id, "a")
    assert store.complete(mine, "x.mp4") and not store.stop(mine)
    assert store.get(job.id).status == "completed"


def test_others_jobs_are_not_there(store: JobStore) -> None:
    job = submitted(store, "a")
    for call in (store.get, store.cancel, store.delete):
        with pytest.raises(NotFound, match=job.id):
            call(job.id, "b")
    with pytest.raises(NotFound):
        store.page("b", after=job.id)
    assert store.page("b").jobs == [] and store.get(job.id, "a").status == "queued"


def test_limits_are_exact(store: JobStore) -> None:
    for _ in range(4):
        submitted(store, "a")
    with pytest.raises(QuotaExceeded) as quota:
        submitted(store, "a")
    submitted(store, "b")
    with pytest.raises(QueueFull) as full:
        submitted(store, "c")
    for error in (quota.value, full.value):
        assert error.status == 429 and error.retry_after_s == 10
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and again.envelope == error.envelope
    assert store.claim("r") is not None  # room for one more, but not for a
    with pytest.raises(QuotaExceeded):
        submitted(store, "a")
    submitted(store, "c", owner_limit=1)


def test_a_key_is_one_job(store: JobStore, clock: Clock) -> None:
    key = Idempotency.of("k", REQUEST)
    first, new = store.submit("a", REQUEST, steps=10, idempotency=key)
    assert new
    assert store.submit("a", REQUEST, steps=10, idempotency=Idempotency.of("k", dict(reversed(REQUEST.items())))) == (
        first, False,
    )  # fmt: skip
    with pytest.raises(KeyReused, match="another request"):
        store.submit("a", REQUEST, steps=10, idempotency=Idempotency.of("k", {"prompt": "a dog"}))
    assert store.submit("b", REQUEST, steps=10, idempotency=key)[1]  # another's key is another key
    clock.now += 86_401
    later, new = store.submit("a", REQUEST, steps=10, idempotency=key)
    assert new and later.id != first.id


def test_a_key_that_meets_a_full_queue_is_free(store: JobStore) -> None:
    jobs = [submitted(store, "a") for _ in range(4)]
    key = Idempotency.of("k", REQUEST)
    with pytest.raises(QuotaExceeded):
        store.submit("a", REQUEST, steps=10, idempotency=key)
    store.cancel(jobs[0].id, "a")
    assert store.submit("a", REQUEST, steps=10, idempotency=key)[1]


def test_a_list_in_pages(store: JobStore) -> None:
    ids = [submitted(store, "a").id for _ in range(4)]
    first = store.page("a", limit=3)
    assert [job.id for job in first.jobs] == ids[:0:-1] and first.has_more
    rest = store.page("a", limit=3, after=first.jobs[-1].id)
    assert [job.id for job in rest.jobs] == ids[:1] and not rest.has_more
    assert [job.id for job in store.page("a", order="asc", after=ids[1]).jobs] == ids[2:]


def test_a_renderer_keeps_its_lora_but_nobody_waits_long(store: JobStore, clock: Clock) -> None:
    old = submitted(store, effect_id="eff_1")
    clock.now += 10
    liked = submitted(store, effect_id="eff_2")
    assert (job := store.claim("r", ["eff_2"])) is not None and job.id == liked.id
    again = submitted(store, effect_id="eff_2")
    clock.now += 25
    assert (job := store.claim("r", ["eff_2"])) is not None and job.id == old.id  # it has waited 35 s
    assert (job := store.claim("r", ["eff_2"])) is not None and job.id == again.id


def test_what_has_expired_is_forgotten(store: JobStore, clock: Clock) -> None:
    kept, gone = submitted(store), submitted(store)
    for name in ("first.mp4", "second.mp4"):
        mine = store.claim("r")
        assert mine is not None and store.complete(mine, name)
        clock.now += 600
    clock.now += 100
    assert store.sweep().artefacts == ["first.mp4"] and store.sweep().artefacts == []
    assert store.get(kept.id).artefact is None and store.get(gone.id).artefact == "second.mp4"
    assert store.delete(gone.id, "a") == "second.mp4"
    with pytest.raises(NotFound):
        store.get(gone.id)
    clock.now += 5000
    store.sweep()
    with pytest.raises(NotFound):
        store.get(kept.id)


def test_only_what_has_ended_is_deleted(store: JobStore) -> None:
    job = submitted(store)
    with pytest.raises(Conflict, match="is queued; cancel it first"):
        store.delete(job.id, "a")
    store.claim("r")
    with pytest.raises(Conflict, match="is in_progress; cancel it first"):
        store.delete(job.id, "a")


def test_records_outlive_the_store(database: str, store: JobStore, clock: Clock) -> None:
    job = submitted(store)
    store.claim("r")
    store.engine.dispose()
    other = JobStore(open_database(database), store.settings, clock)
    assert other.get(job.id).status == "in_progress"
    clock.now += 61
    assert other.sweep().requeued == [job.id]
    assert submitted(other).sequence > job.sequence


def work(url: str, name: str, sender: "multiprocessing.Queue[list[tuple[str, bool]]]") -> None:
    """A renderer in a process of its own: claims until nothing waits."""
    store = JobStore(open_database(url))
    found = []
    while (job := store.claim(name)) is not None:
        store.beat(job, 1)
        found.append((job.id, store.complete(job, f"{job.id}.mp4")))
    sender.put(found)


def test_many_renderers_share_no_job(database: str) -> None:
    store = JobStore(open_database(database), JobSettings(queue_limit=200, owner_limit=200))
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda i: submitted(store, f"owner-{i % 3}").id, range(60)))
    context = multiprocessing.get_context("spawn")
    sender = context.Queue()
    workers = [context.Process(target=work, args=(database, f"r{i}", sender)) for i in range(3)]
    for worker in workers:
        worker.start()
    found = [pair for _ in workers for pair in sender.get(timeout=120)]
    for worker in workers:
        worker.join()
    assert Counter(job_id for job_id, _ in found) == Counter(ids) and all(ok for _, ok in found)
    assert store.depth() == {"completed": 60}


def test_limits_hold_when_all_come_at_once(database: str) -> None:
    store = JobStore(open_database(database), JobSettings(queue_limit=10, owner_limit=100))
    key = Idempotency.of("same", REQUEST)

    def submit(index: int) -> str:
        try:
            return store.submit("a", REQUEST, steps=1, idempotency=key if index % 2 else None)[0].id
        except QueueFull:
            return "full"

    with ThreadPoolExecutor(16) as pool:
        found = Counter(pool.map(submit, range(48)))
    assert store.depth() == {"queued": 10}
    keyed = {store.submit("a", REQUEST, steps=1, idempotency=key)[0].id for _ in range(3)}
    assert len(keyed) == 1 and len([name for name in found if name != "full"]) == 10


@pytest.mark.parametrize(
    "url", ["nonsense", "oracle+nothing://x", "sqlite:////nowhere/at/all.sqlite", "postgresql+psycopg://127.0.0.1:1/x"]
)
def test_a_database_that_cannot_be_opened_is_named(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        open_database(url)
    assert "\n" not in str(error.value)


def test_a_database_of_another_version_is_named(database: str) -> None:
    with open_database(database).begin() as connection:
        connection.execute(text("ALTER TABLE effects DROP COLUMN seconds"))
    with pytest.raises(ConfigError, match="another version, effects has no seconds"):
        open_database(database)


def test_a_password_is_not_shown() -> None:
    with pytest.raises(ConfigError) as error:
        open_database("postgresql+psycopg://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(error.value)
