"""Events on their way: signed, sent again until they arrive, never to where they may not go; with real receivers."""

import base64
import hashlib
import hmac
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from databases import Clock
from receivers import Receiver, certificate, receiving

from p2e.errors import ConfigError
from serve.database import open_database
from serve.job import Job, JobSettings
from serve.jobs import JobStore
from serve.keys import Keys, new_key
from serve.outbox import Outbox
from serve.schemas import video_object
from serve.webhook_urls import WebhookSettings
from serve.webhooks import Delivered, Deliverer

HOST = "hooks.example.com"
KEYS = Keys([new_key("a")[1], new_key("b")[1]])
CLIP = {"frames": 9, "fps": 8, "width": 48, "height": 32}
ONE = Delivered(delivered=1)


class Bench:
    """Jobs, their events, and deliverers to receivers on this computer."""

    def __init__(self, database: str) -> None:
        self.clock = Clock()
        self.jobs = JobStore(open_database(database), JobSettings(lease_s=10_000), self.clock)
        self.outbox = Outbox(self.jobs.engine, self.clock)

    def ended(self, url: str, how: str = "completed", owner: str = "a") -> Job:
        told = {"webhook": {"url": url, "model": "world"}}
        job = self.jobs.submit(owner, {"prompt": "a fox", "clip": CLIP} | told, steps=4)[0]
        if how == "cancelled":
            return self.jobs.cancel(job.id, owner)
        mine = self.jobs.claim("r")
        assert mine is not None
        assert self.jobs.complete(mine, "x.mp4") if how == "completed" else self.jobs.fail(mine, "oom", "no memory")
        return self.jobs.get(job.id)

    def deliverer(self, *receivers: Receiver, resolve: Any = None, **settings: Any) -> Deliverer:
        local = {"hosts": [HOST, "*.partner.org", "127.0.0.1"], "ports": [receiver.port for receiver in receivers],
                 "allow_http": True, "allow_private": True, "timeout_s": 5}  # fmt: skip
        found = WebhookSettings.parse(local | settings)
        return Deliverer(self.outbox, KEYS, found, resolve or (lambda host, port: ["127.0.0.1"]))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(f"sqlite:///{tmp_path / 'jobs.sqlite'}")


def http(receiver: Receiver, path: str = "/in") -> str:
    return f"http://{HOST}:{receiver.port}{path}"


def tls(receiver: Receiver) -> str:
    return http(receiver).replace("http:", "https:")


def test_an_event_is_signed_and_says_what_ended(database: str) -> None:
    bench = Bench(database)
    with receiving() as receiver:
        jobs = {how: bench.ended(http(receiver, "/in?for=me"), how) for how in ("completed", "failed", "cancelled")}
        bench.clock.now += 7
        assert bench.deliverer(receiver).run_once() == Delivered(delivered=3)
        assert bench.deliverer(receiver).run_once() == Delivered()
    assert len(set(receiver.ids())) == 3 and bench.outbox.depth() == {"delivered": 3}
    for had in receiver.had:
        event = json.loads(had.body)
        job = jobs[event["type"].removeprefix("video.")]
        assert event["timestamp"] == "1970-01-01T00:16:40.000Z" and set(event) == {"type", "timestamp", "data"}
        assert event["data"] == video_object(job, "world") and had.path == "/in?for=me"
        assert (had.headers["host"], had.headers["content-type"]) == (f"{HOST}:{receiver.port}", "application/json")
        assert had.headers["webhook-timestamp"] == "1007" and had.headers["webhook-id"].startswith("evt_")
        secret = base64.b64decode((KEYS.webhook_secret("a") or "").removeprefix("whsec_"))
        text = f"{had.headers['webhook-id']}.1007.{had.body}".encode()
        signed = "v1," + base64.b64encode(hmac.new(secret, text, hashlib.sha256).digest()).decode()
        assert had.headers["webhook-signature"] == signed


def test_every_owner_has_a_secret_of_its_own(bench: Bench) -> None:
    with receiving() as receiver:
        bench.ended(http(receiver), owner="a")
        bench.ended(http(receiver), owner="b")
        bench.ended(http(receiver), owner="gone")  # its key was taken away
        assert bench.deliverer(receiver).run_once() == Delivered(delivered=2, retried=1)
    assert len({had.headers["webhook-signature"] for had in receiver.had}) == 2 == len(receiver.had)


def test_a_certificate_is_of_the_host_and_not_of_the_address(bench: Bench, tmp_path: Path) -> None:
    authority, right = certificate(tmp_path / "right", [HOST])
    wrong_authority, wrong = certificate(tmp_path / "wrong", ["127.0.0.1", "other.example.com"])
    with receiving(tls=right) as good, receiving(tls=wrong) as bad:
        bench.ended(tls(good))
        bench.ended(tls(bad))
        sent = bench.deliverer(good, bad, ca_file=str(authority)).run_once()
        assert sent == Delivered(delivered=1, retried=1) and len(good.had) == 1 and bad.had == []
        bench.clock.now += 100
        for settings in ({"ca_file": str(wrong_authority)}, {}):  # known, but another's; known to nobody
            assert bench.deliverer(good, bad, **settings).run_once() == Delivered(retried=1)
            bench.clock.now += 100
        assert bad.connections == 3 and bad.had == []
    with pytest.raises(ConfigError, match=r"receiver\.pem|x\.pem"):
        bench.deliverer(ca_file=str(tmp_path / "x.pem"))


def test_what_does_not_arrive_is_sent_again_later_and_later(bench: Bench) -> None:
    with receiving(500, 404, 302, 200) as receiver:
        bench.ended(http(receiver))
        deliverer = bench.deliverer(receiver, backoff_s=100, backoff_factor=10, backoff_max_s=500)
        for most in (125, 625, 625):
            assert deliverer.run_once() == Delivered(retried=1)
            bench.clock.now += most * 0.59  # the shortest wait is three fifths of the longest
            assert deliverer.run_once() == Delivered()
            bench.clock.now += most * 0.42
        assert deliverer.run_once() == ONE
    times = [int(had.headers["webhook-timestamp"]) for had in receiver.had]
    assert len(set(receiver.ids())) == 1 and len(times) == 4 and times == sorted(set(times))
    assert len({had.headers["webhook-signature"] for had in receiver.had}) == 4


def test_an_event_is_given_up_and_counted(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with receiving(503) as busy, receiving(410) as gone:
        bench.ended(http(busy, "/in?token=hunter2"))
        bench.ended(http(gone, "/in?token=hunter2"))
        deliverer = bench.deliverer(busy, gone, attempts=3, backoff_s=1)
        with caplog.at_level(logging.DEBUG, "p2e"):
            assert deliverer.run_once() == Delivered(retried=1, given_up=1)
            for sent in (Delivered(retried=1), Delivered(given_up=1), Delivered()):
                bench.clock.now += 1000
                assert deliverer.run_once() == sent
    assert len(busy.had) == 3 and len(gone.had) == 1 and bench.outbox.depth() == {"given_up": 2}
    assert "answered 503" in caplog.text and "answered 410" in caplog.text
    assert "hunter2" not in caplog.text and "whsec" not in caplog.text and "v1," not in caplog.text


def test_a_redirect_is_not_followed(bench: Bench) -> None:
    with receiving() as inside:
        for status in (301, 302, 303, 307, 308):
            with receiving(status, location=f"http://127.0.0.1:{inside.port}/admin") as receiver:
                bench.ended(http(receiver))
                assert bench.deliverer(receiver, attempts=1).run_once() == Delivered(given_up=1)
                assert len(receiver.had) == 1
        assert inside.connections == 0


def test_a_private_address_is_not_connected_to(bench: Bench) -> None:
    with receiving() as inside:
        for found in (["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"], ["0.0.0.0"], []):
            bench.ended(http(inside))
            strict = bench.deliverer(inside, resolve=lambda *_, f=found: f, allow_private=False, attempts=1)
            assert strict.run_once() == Delivered(given_up=1)
        bench.ended(f"http://127.0.0.1:{inside.port}/")  # as it stands in the URL
        strict = bench.deliverer(inside, resolve=lambda host, _port: [host], allow_private=False)
        assert strict.run_once() == Delivered(retried=1)
        assert inside.connections == 0


def test_a_name_is_looked_up_once_and_its_checked_address_used(bench: Bench) -> None:
    asked: list[tuple[str, int]] = []

    def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append((host, port))
        return ["127.0.0.1"] if len(asked) == 1 else ["169.254.169.254"]

    with receiving(500, 200) as receiver:  # which no name server knows under its name
        bench.ended(http(receiver))
        deliverer = bench.deliverer(receiver, resolve=rebinding)
        assert deliverer.run_once() == Delivered(retried=1) and asked == [(HOST, receiver.port)]
        bench.clock.now += 100
        assert deliverer.run_once() == Delivered(retried=1) and len(asked) == 2  # now it is another address
        assert receiver.connections == 1


def test_what_is_allowed_no_more_is_not_sent(bench: Bench) -> None:
    with receiving() as receiver:
        bench.ended(http(receiver))
        assert bench.deliverer(receiver, hosts=["other.org"]).run_once() == Delivered(retried=1)
        assert receiver.connections == 0
        bench.clock.now += 100
        assert bench.deliverer(receiver).run_once() == ONE


def test_another_address_of_a_host_will_do(bench: Bench) -> None:
    with receiving() as receiver:
        bench.ended(http(receiver))
        # Nobody listens at the first; the second does.
        assert bench.deliverer(receiver, resolve=lambda _h, _p: ["127.0.0.2", "127.0.0.1"]).run_once() == ONE
        bench.ended(http(receiver))
        assert bench.deliverer(receiver, resolve=lambda _h, _p: ["127.0.0.2"]).run_once() == Delivered(retried=1)


def test_a_proxy_of_the_environment_is_not_used(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with receiving() as proxy, receiving() as receiver:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        bench.ended(http(receiver))
        assert bench.deliverer(receiver).run_once() == ONE and proxy.connections == 0


@pytest.mark.parametrize("answer", ["hang", "drip"])
def test_who_never_answers_delays_nobody(bench: Bench, answer: str) -> None:
    with receiving(answer) as silent, receiving() as receiver:
        for _ in range(3):
            bench.ended(http(silent))
            bench.ended(http(receiver))
        start = time.monotonic()
        sent = bench.deliverer(silent, receiver, timeout_s=0.5).run_once()
        assert sent == Delivered(delivered=3, retried=3) and time.monotonic() - start < 4


def test_a_look_up_without_end_is_left_behind(bench: Bench) -> None:
    over = threading.Event()

    def resolve(host: str, _port: int) -> Sequence[str]:
        if host != HOST:
            over.wait(20)
        return ["127.0.0.1"]

    with receiving() as receiver:
        bench.ended(http(receiver).replace(HOST, "slow.partner.org"))
        bench.ended(http(receiver))
        deliverer = bench.deliverer(receiver, resolve=resolve, timeout_s=0.3)
        start = time.monotonic()
        assert deliverer.run_once() == Delivered(delivered=1, retried=1) and time.monotonic() - start < 4
        over.set()
        deliverer.close()


def test_little_of_an_answer_is_read(bench: Bench) -> None:
    with receiving("flood") as receiver:
        bench.ended(http(receiver))
        assert bench.deliverer(receiver, answer_bytes=10_000).run_once() == ONE
    assert receiver.sent < 20 << 20  # what lies in the buffers of both ends


def test_who_dies_before_it_says_so_has_sent_twice(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(database)
    with receiving() as receiver:
        bench.ended(http(receiver))
        dying = bench.deliverer(receiver, lease_s=60)

        def dies(*_: object) -> bool:
            raise KeyError("the database has gone")

        with monkeypatch.context() as patch:
            patch.setattr(dying.outbox, "delivered", dies)
            with pytest.raises(KeyError):
                dying.run_once()
        other = bench.deliverer(receiver)
        assert other.run_once() == Delivered()  # it may still be on its way
        bench.clock.now += 61
        assert other.run_once() == ONE and receiver.ids()[0] == receiver.ids()[1]
        for _ in range(20):  # dying is no attempt of the receiver's: nothing is given up for it
            bench.ended(http(receiver))
            for event in bench.outbox.claim(9, 60):
                assert event.attempts == 0
            bench.clock.now += 61
        assert bench.deliverer(receiver, attempts=1, batch=20).run_once() == Delivered(delivered=20)


def test_late_words_change_nothing(database: str) -> None:
    bench = Bench(database)
    bench.ended("http://x/")
    (slow,) = bench.outbox.claim(1, 60)
    assert bench.outbox.claim(1, 60) == []
    bench.clock.now += 61
    (mine,) = bench.outbox.claim(1, 60)
    assert not bench.outbox.failed(slow, "late", None)  # another has it
    assert bench.outbox.delivered(slow) and not bench.outbox.delivered(mine)  # but what arrived has arrived
    assert not bench.outbox.failed(mine, "x", None) and bench.outbox.depth() == {"delivered": 1}


def test_deliverers_share_no_event(database: str) -> None:
    bench = Bench(database)
    with receiving() as receiver:
        jobs = [bench.ended(http(receiver)).id for _ in range(24)]
        deliverers = [bench.deliverer(receiver, batch=3, timeout_s=50) for _ in range(4)]
        together = threading.Barrier(4)

        def go(deliverer: Deliverer) -> Counter[str]:
            together.wait()
            found: Counter[str] = Counter()
            while bench.outbox.depth().get("waiting"):
                found.update(vars(deliverer.run_once()))
            return found

        with ThreadPoolExecutor(4) as pool:
            found = sum(pool.map(go, deliverers), Counter())
    assert found["delivered"] == 24 and found["retried"] == found["given_up"] == 0
    assert Counter(json.loads(had.body)["data"]["id"] for had in receiver.had) == Counter(jobs)


def test_one_event_that_cannot_be_sent_stops_no_other(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def resolve(host: str, _port: int) -> Sequence[str]:
        if host != HOST:
            raise RuntimeError("hunter2")
        return ["127.0.0.1"]

    with receiving() as receiver:
        bench.ended(http(receiver).replace(HOST, "odd.partner.org"))
        bench.ended(http(receiver))
        assert bench.deliverer(receiver, resolve=resolve).run_once() == Delivered(delivered=1, retried=1)
    assert "RuntimeError" in caplog.text and "hunter2" not in caplog.text


def test_old_events_are_forgotten(bench: Bench) -> None:
    bench.ended("http://x/")
    bench.clock.now += bench.jobs.settings.remember_s - 1
    bench.jobs.sweep()
    assert bench.outbox.depth() == {"waiting": 1}
    bench.clock.now += 2
    bench.jobs.sweep()
    assert bench.outbox.depth() == {}


def resolving(error: Exception) -> Callable[[str, int], Sequence[str]]:
    def resolve(_host: str, _port: int) -> Sequence[str]:
        raise error

    return resolve


@pytest.mark.parametrize("error", [OSError("no such name"), UnicodeError("label too long")])
def test_a_host_without_an_address_may_have_one_later(bench: Bench, error: Exception) -> None:
    with receiving() as receiver:
        bench.ended(http(receiver))
        assert bench.deliverer(receiver, resolve=resolving(error)).run_once() == Delivered(retried=1)
        bench.clock.now += 100
        assert bench.deliverer(receiver).run_once() == ONE
