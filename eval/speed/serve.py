"""Measures the endpoint on the embedded world: one JSON line a case, then a table.

    python -m eval.speed.serve --out serve.jsonl --plot eval/results/serving.png
    python -m eval.speed.serve --plan tiny

A Ray of its own on this machine with the whole service. In an open loop: effects that are in the store, effects that
are not (the service's own share is the latency less the seconds of the pass that made the effect), videos handed in.
Then autoscaling: a queue that one renderer cannot keep up with, until the second has come and gone again. Then jobs by
the hundred while renderers, dispatcher and controller are killed: none may be lost, and none may end twice.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from eval.speed.lines import commit, emit, lines
from eval.speed.serve_load import open_loop, percentiles

__all__ = ["PLANS", "Plan", "main", "table"]

SHORT = {"num_frames": 5, "num_inference_steps": 2}


@dataclass(frozen=True)
class Plan:
    """How much of each.

    Attributes:
        known, videos: requests, with their rates a second.
        new: requests, at a rate that keeps the predictor busy for this share of the time.
        queue: videos that renderers are scaled by, of `steps` steps each.
        jobs: videos under kills; every `kill_s` seconds something is killed, if a video has ended since the last time
            (to start a renderer takes longer than a short while: killed more often, none would ever get to work).
    """

    known: tuple[int, float] = (600, 20)
    new: tuple[int, float] = (40, 0.25)
    videos: tuple[int, float] = (100, 5)
    queue: int = 40
    steps: int = 20
    jobs: int = 1000
    kill_s: float = 40
    downscale_s: float = 20


PLANS = {
    "paper": Plan(),
    "tiny": Plan((20, 10), (2, 1.0), (4, 2), queue=6, steps=10, jobs=12, kill_s=4, downscale_s=2),
}


class Service:
    """The service on a Ray of its own."""

    def __init__(self, address: str, database: str) -> None:
        from serve.database import open_database
        from serve.jobs import JobStore

        self.address, self.jobs = address, JobStore(open_database(database))
        self.client = httpx.Client(base_url=address, timeout=120)

    def video(self, **fields: Any) -> str:
        """Hands in a video -> its id; asks again where the queue is full."""
        while True:
            answer = self.client.post("/v1/videos", **form(**fields))
            if answer.status_code == 200:
                return answer.json()["id"]
            time.sleep(0.5)

    def open_jobs(self) -> int:
        depth = self.jobs.depth()
        return depth.get("queued", 0) + depth.get("in_progress", 0)


def form(**fields: Any) -> dict[str, Any]:
    """The form of a video."""
    return {
        "data": {"prompt": "a fox in the snow", **{name: str(value) for name, value in fields.items()}},
        "files": {"input_reference": ("x.png", picture(), "image/png")},
    }


def picture() -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.linear_gradient("L").resize((96, 96)).convert("RGB").save(file, "PNG")
    return file.getvalue()


@contextlib.contextmanager
def service(plan: Plan) -> Iterator[Service]:
    """Starts it, and ends it with all that it started."""
    os.environ |= {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.edge:proxy_middlewares",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    import ray
    from ray import serve

    from serve.app import AppArgs, application
    from serve.up import free_port

    scaling = {
        "min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 2, "upscale_delay_s": 2,
        "downscale_delay_s": plan.downscale_s, "look_back_period_s": 11,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        args = AppArgs.parse({
            "store": {"database": f"sqlite:///{folder}/p2e.sqlite", "artefacts": f"{folder}/artefacts",
                      "jobs": {"queue_limit": 2000, "owner_limit": 2000, "lease_s": 10}},
            "dispatcher": {"tick_s": 0.1, "sweep_s": 1},
        })  # fmt: skip
        options: dict[str, Any] = {
            name: {"ray_actor_options": {"num_cpus": 0.1}}
            for name in ("gateway", "predictor", "renderer", "dispatcher")
        }
        options["renderer"]["autoscaling_config"] = scaling
        ray.init("local", num_cpus=2, num_gpus=0, log_to_driver=False, object_store_memory=100 << 20)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": (port := free_port())})  # pyright: ignore
            serve.run(application(args, options), name="p2e", route_prefix="/")
            found = Service(f"http://127.0.0.1:{port}", args.store.database)
            while found.client.get("/readyz").status_code != 200:
                time.sleep(0.5)
            yield found
        finally:
            serve.shutdown()
            ray.shutdown()


def measure_known(found: Service, plan: Plan, out: Path) -> None:
    body = {"prompt": "the subject levitates"}
    found.client.post("/v1/effects", json=body).raise_for_status()
    count, rate = plan.known
    answers = asyncio.run(open_loop(lambda c, _: c.post("/v1/effects", json=body), rate, count, found.address))
    failed = sum(a.status != 201 for a in answers)
    emit(out, {"kind": "load", "name": "effect in the store", "rate": rate, "count": count, "failed": failed,
               **percentiles([a.seconds for a in answers])})  # fmt: skip


def measure_new(found: Service, plan: Plan, out: Path) -> None:
    count, share = plan.new
    first = found.client.post("/v1/effects", json={"prompt": "the subject turns to stone"}).json()
    rate = round(share / first["seconds"], 3)

    def ask(client: httpx.AsyncClient, index: int) -> Any:
        return client.post("/v1/effects", json={"prompt": f"the subject turns to glass, version {index}"})

    answers = asyncio.run(open_loop(ask, rate, count, found.address))
    good = [a for a in answers if a.status == 201]
    common = {"kind": "load", "rate": rate, "count": count, "failed": len(answers) - len(good)}
    emit(out, common | {"name": "effect that is made", **percentiles([a.seconds for a in good])})
    emit(out, common | {"name": "of that, the pass", **percentiles([a.body["seconds"] for a in good])})
    own = [a.seconds - a.body["seconds"] for a in good]
    emit(out, common | {"name": "of that, the service's own", **percentiles(own)})


def measure_videos(found: Service, plan: Plan, out: Path) -> None:
    count, rate = plan.videos
    asked = form(**SHORT)
    answers = asyncio.run(open_loop(lambda c, _: c.post("/v1/videos", **asked), rate, count, found.address))
    failed = sum(a.status != 200 for a in answers)
    emit(out, {"kind": "load", "name": "video handed in", "rate": rate, "count": count, "failed": failed,
               **percentiles([a.seconds for a in answers])})  # fmt: skip
    wait_until_empty(found)


def wait_until_empty(found: Service, seconds: float = 1800) -> None:
    deadline = time.monotonic() + seconds
    while found.open_jobs():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{found.open_jobs()} jobs have not ended")
        time.sleep(0.5)


def measure_scaling(found: Service, plan: Plan, out: Path) -> None:
    """Renderers and queue over time, from before the queue to after the second renderer has gone."""
    from ray import serve

    start, curve = time.monotonic(), []

    def look() -> int:
        deployments = serve.status().applications["p2e"].deployments
        states = deployments["renderer"].replica_states
        running = sum(count for state, count in states.items() if getattr(state, "value", state) == "RUNNING")
        curve.append((round(time.monotonic() - start, 1), found.open_jobs(), running))
        return running

    wait_for(lambda: look() == 1, 120)  # whatever came before has been scaled away
    for index in range(plan.queue):
        found.video(seed=index, num_frames=5, num_inference_steps=plan.steps)
    wait_for(lambda: look() == 2 or curve[-1][1] == 0, 300)
    second = curve[-1][0] if curve[-1][2] == 2 else None
    wait_for(lambda: look() >= 0 and curve[-1][1] == 0, 900)
    empty = curve[-1][0]
    wait_for(lambda: look() == 1, 300)
    emit(out, {"kind": "scaling", "second_at": second, "empty_at": empty, "one_again_at": curve[-1][0],
               "jobs": plan.queue, "curve": curve})  # fmt: skip


def wait_for(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.5)


def measure_kills(found: Service, plan: Plan, out: Path) -> None:
    """Renderers are killed again and again, the dispatcher and the controller once."""
    from ray import serve

    serve.status()
    chance, killed, start = random.Random(0), Counter(), time.monotonic()
    videos = [found.video(seed=index, **SHORT) for index in range(plan.jobs)]
    following, left = start + plan.kill_s, plan.jobs + 1
    while now_left := found.open_jobs():
        if time.monotonic() > following and now_left < left:
            following, left = time.monotonic() + plan.kill_s, now_left
            done = sum(killed.values())
            title = {1: "ray::ServeReplica:p2e:dispatcher", 3: "ray::ServeController"}.get(
                done, "ray::ServeReplica:p2e:renderer"
            )
            if own := processes(title):
                os.kill(chance.choice(own), signal.SIGKILL)
                killed[title.rpartition(":")[2]] += 1
        if time.monotonic() - start > 3600:
            break
        time.sleep(0.2)
    seconds = time.monotonic() - start
    jobs = [found.jobs.get(video) for video in videos]
    ends = Counter(job.error_code or job.status for job in jobs)
    files = [job.artefact for job in jobs if job.artefact is not None]
    emit(out, {
        "kind": "kills", "jobs": len(jobs), "seconds": seconds, "killed": dict(killed), "ends": dict(ends),
        "not_ended": sum(not job.ended for job in jobs), "begun_again": sum(job.attempt > 1 for job in jobs),
        "files": len(files), "files_twice": len(files) - len(set(files)),
    })  # fmt: skip


def processes(title: str) -> list[int]:
    """Of this process's descendants, those with a title; nothing else on the machine is touched."""
    import psutil

    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if " ".join(child.cmdline()).startswith(title):
                found.append(child.pid)
    return found


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    rows = ["| case | rate, 1/s | requests | failed | p50, ms | p95, ms | p99, ms | most, ms |", "|---|" + "---|" * 7]
    notes = []
    for line in found:
        if line["kind"] == "load":
            times = " | ".join(f"{1000 * line[name]:.1f}" for name in ("p50", "p95", "p99", "most"))
            rows.append(f"| {line['name']} | {line['rate']:g} | {line['count']} | {line['failed']} | {times} |")
        elif line["kind"] == "scaling":
            notes.append(
                f"{line['jobs']} jobs: second renderer after {line['second_at']} s, queue empty after "
                f"{line['empty_at']} s, one renderer again after {line['one_again_at']} s"
            )
        elif line["kind"] == "kills":
            notes.append(
                f"{line['jobs']} jobs in {line['seconds']:.0f} s, killed {line['killed']}: ended {line['ends']}, "
                f"{line['not_ended']} not ended, {line['begun_again']} begun again, {line['files']} files, "
                f"{line['files_twice']} of them of two jobs"
            )
    return "\n".join([*rows, "", *notes])


def plot(found: Sequence[dict[str, Any]], path: Path) -> None:
    """The queue and the renderers over time."""
    from eval.world.plot import Chart, Line

    (curve,) = [line["curve"] for line in found if line["kind"] == "scaling"]
    seconds = [point[0] for point in curve]
    Chart(
        "Videos that have not ended, and renderers", "seconds", "",
        [Line("videos", seconds, [point[1] for point in curve]),
         Line("renderers, times ten", seconds, [10 * point[2] for point in curve])],
    ).save(path)  # fmt: skip


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval.speed.serve", description=__doc__)
    parser.add_argument("--plan", choices=sorted(PLANS), default="paper")
    parser.add_argument("--out", type=Path, default=Path("serve.jsonl"), help="file that lines are added to")
    parser.add_argument("--plot", type=Path, help="picture of the scaling")
    parser.add_argument("--only", nargs="*", choices=sorted(CASES), help="some of the cases")
    arguments = parser.parse_args(given)
    plan, out = PLANS[arguments.plan], arguments.out
    emit(out, {"kind": "machine", "commit": commit(), "cores": os.cpu_count()})
    with service(plan) as found:
        for name, measure in CASES.items():
            if not arguments.only or name in arguments.only:
                measure(found, plan, out)
    print(table(lines(out)))
    if arguments.plot is not None:
        plot(lines(out), arguments.plot)
    return 0


CASES = {
    "known": measure_known, "new": measure_new, "videos": measure_videos, "scaling": measure_scaling,
    "kills": measure_kills,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
