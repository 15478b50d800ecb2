"""`p2e serve` as a user starts it: the page comes up, Ray asks for a token, and nothing is left when it ends."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from gateways import picture
from live import SHORT, ended
from local_head import processes_under, status
from local_ray import wait_until

from serve.up import free_port

pytestmark = pytest.mark.slow
P2E = Path(sys.executable).with_name("p2e")


def environment(home: Path) -> dict[str, str]:
    """Of a user who has never started Ray."""
    names = {"RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "PYTHONPATH"}
    kept = {name: value for name, value in os.environ.items() if name not in names}
    return kept | {"HOME": str(home), "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(home)}


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="p2e-", dir="/tmp"))  # Ray's sockets have paths of at most 107 characters
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_from_the_command_to_a_video_and_back(home: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [str(P2E), "serve", "--port", str(port)], cwd=home, env=environment(home), text=True,
        stdout=subprocess.PIPE, stderr=(home / "errors").open("w"),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(5)]
        assert said[0] == f"page     http://127.0.0.1:{port}/\n", (said, (home / "errors").read_text()[-2000:])
        assert not (home / ".ray").exists()  # the token is of this run alone
        dashboard = said[3].split()[1]
        assert status(f"{dashboard}/api/serve/applications/") == 401
        assert status(f"{dashboard}/api/serve/applications/", "0" * 64) == 403
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as caller:
            assert "<title>" in caller.get("/").text and caller.get("/docs").status_code == 200
            effect = caller.post("/v1/effects", json={"prompt": "the subject levitates"}).json()
            asked = {"prompt": "a fox", "effect_id": effect["id"], **{k: str(v) for k, v in SHORT.items()}}
            files = {"input_reference": ("x.png", picture(), "image/png")}
            video = caller.post("/v1/videos", data=asked, files=files).json()
            assert ended(caller, video["id"])["status"] == "completed"
            counted = 'p2e_videos_total{code="",status="completed"} 1.0'  # a second later
            wait_until(lambda: counted in caller.get("/metrics").text, "the renderer's counters", 30)
        assert (home / "runs/serve/p2e.sqlite").is_file()
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        wait_until(lambda: not any(child.is_running() for child in children), "the end of all it started", 60)
    finally:
        process.kill()
        process.wait()
        for number in processes_under(home):
            os.kill(number, signal.SIGKILL)


def refused(home: Path, *arguments: str, **more: str) -> str:
    done = subprocess.run(
        [str(P2E), "serve", *arguments], cwd=home, env=environment(home) | more, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("p2e: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr
    return lines[0]


def test_mistakes_are_one_line(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = str(listener.getsockname()[1])
        assert re.search(rf"port {taken} .*--port", refused(home, "--port", taken))
    assert "no such file" in refused(home, "nowhere.yaml")
    assert "serve deploy" in refused(home, "--port", str(free_port()), RAY_ADDRESS="127.0.0.1:6379")
    config = home / "config.yaml"
    config.write_text((Path(__file__).parents[2] / "serve/world.yaml").read_text().replace("lease_s", "lease"))
    assert "store.jobs.lease" in refused(home, str(config))


def test_what_does_not_come_up_says_why(home: Path) -> None:
    config = home / "config.yaml"
    text = (Path(__file__).parents[2] / "serve/world.yaml").read_text()
    config.write_text(text.replace("checkpoint: world", "checkpoint: /nowhere"))
    assert "/nowhere" in refused(home, str(config), "--port", str(free_port()))
