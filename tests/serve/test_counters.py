"""Sums that several processes add to, and how Prometheus reads them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from databases import Clock
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event

from serve.counters import Counters
from serve.database import open_database
from serve.jobs import JobStore
from serve.metrics import metrics_text


def test_several_add_to_one_sum(database: str) -> None:
    def add(index: int) -> None:
        counters = Counters(open_database(database), every_s=None)
        for _ in range(20):
            counters.add("p2e_videos", status="failed", code="x")
            counters.add("p2e_effect_hits", 0.5)
            counters.flush()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    found = Counters(open_database(database), every_s=None).read()
    assert found["p2e_videos"] == {(("code", "x"), ("status", "failed")): 80}
    assert found["p2e_effect_hits"] == {(): 40}


def test_histograms_are_cumulative_for_prometheus(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'x.sqlite'}")
    counters = Counters(engine, every_s=None)
    for seconds in (0.001, 0.3, 0.3, 10_000):
        counters.observe("p2e_render_seconds", seconds)
    families = {f.name: f for f in text_string_to_metric_families(metrics_text(JobStore(engine), counters).decode())}
    samples = {s.labels.get("le", s.name): s.value for s in families["p2e_render_seconds"].samples}
    assert samples["0.005"] == 1 and samples["0.25"] == 1 and samples["0.5"] == 3 and samples["600"] == 3
    assert samples["+Inf"] == 4 == samples["p2e_render_seconds_count"]
    assert samples["p2e_render_seconds_sum"] == pytest.approx(10_000.601)


def test_a_database_that_is_away_loses_nothing(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'x.sqlite'}")
    counters = Counters(engine, every_s=None)
    counters.add("p2e_effect_hits")
    engine.dispose()
    away = [True]

    @event.listens_for(engine, "begin")
    def refuse(_connection: object) -> None:
        if away[0]:
            from sqlalchemy.exc import OperationalError

            raise OperationalError("away", None, Exception("away"))

    counters.flush()
    counters.add("p2e_effect_hits")
    away[0] = False
    assert counters.read()["p2e_effect_hits"] == {(): 2}


def test_the_thread_stores_by_itself(tmp_path: Path) -> None:
    import time

    engine = open_database(f"sqlite:///{tmp_path / 'x.sqlite'}")
    counters = Counters(engine, every_s=0.02)
    counters.add("p2e_effect_hits")
    reader = Counters(engine, every_s=None)
    deadline = time.monotonic() + 5
    while not reader.read() and time.monotonic() < deadline:
        time.sleep(0.02)
    counters.close()
    assert reader.read()["p2e_effect_hits"] == {(): 1}


def test_queues_are_shown(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'x.sqlite'}")
    clock = Clock()
    jobs = JobStore(engine, clock=clock)
    jobs.submit("a", {}, steps=1)
    clock.now += 12
    text = metrics_text(jobs, Counters(engine, every_s=None)).decode()
    assert 'p2e_jobs{status="queued"} 1.0' in text and "p2e_queue_wait_seconds 12.0" in text
