"""The server of the page: blind, for the rater alone, and nothing is lost that was answered."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from cli_runner import assert_mistake, run_cli
from PIL import Image
from raters import asked
from small_run import METHODS, SmallRun, small_run

from eval.preferences.server import MAX_BODY
from eval.preferences.votes import read_votes
from eval.run_files import RunFiles

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    found = small_run(tmp_path_factory.mktemp("made") / "run")
    (found.folder / "images").mkdir()
    for scene in found.suite.scenes:
        Image.new("RGB", (32, 32)).save(found.folder / "images" / f"{scene.id}.png")
    return found


@pytest.fixture
def run(made: SmallRun, tmp_path: Path) -> SmallRun:
    """One of the test's own."""
    shutil.copytree(made.folder, tmp_path / "run")
    return replace(made, folder=tmp_path / "run")


def get(address: str, path: str = "") -> httpx.Response:
    return httpx.get(address + path, timeout=10)


def test_what_is_served_is_blind(run: SmallRun):
    with asked(run.folder) as server:
        pairs, address = server.session.pairs, server.address
        assert urlsplit(address).hostname == "127.0.0.1" == server.server_address[0]
        session = get(address, "session").json()
        assert session == {"rater": "ana", "choices": [None] * 60}
        texts = [get(address).text, get(address, "page.js").text, get(address, "session").text]
        for number in (0, 59):
            answer = get(address, f"pairs/{number}")
            texts += [answer.text, str(answer.headers)]
            assert answer.json() == {"prompt": pairs[number].prompt}
            for name, row in (("left", pairs[number].left), ("right", pairs[number].right)):
                clip = get(address, f"pairs/{number}/{name}")
                assert clip.content == (run.folder / f"clips/{row.clip}.mp4").read_bytes()
                assert clip.headers["content-type"] == "video/mp4"
                texts.append(str(clip.headers))
            image = get(address, f"pairs/{number}/image")
            assert image.headers["content-type"] == "image/png"
            assert image.content == (run.folder / pairs[number].left.image).read_bytes()
        for text in texts:
            assert not [title for title, _ in METHODS if title in text]
        answer = get(address)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["referrer-policy"] == "no-referrer" and answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_without_the_token_there_is_nothing(run: SmallRun):
    with asked(run.folder) as server, asked(run.folder, "ben") as other:
        root = server.address.removesuffix(f"{server.token}/")
        assert len(server.token) >= 20 and server.token != other.token
        for path in ("", "session", "page.js", f"{server.token[:-1]}/session", f"{other.token}/session", "%00/session"):
            answer = get(root, path)
            assert answer.status_code == 404 and server.token not in answer.text, path
        assert httpx.post(f"{root}x/pairs/0", json={"choice": "left"}).status_code == 404
    assert read_votes(RunFiles.of(run.folder)) == []


@pytest.mark.parametrize(
    "path",
    ["pairs/60", "pairs/-1", "pairs/1e1", "pairs/٣", "pairs/0/first", "pairs/0/left/..", "pairs/0/../../suite.json",
     "../suite.json", "suite.json", "%2e%2e/suite.json", "..%2f..%2fetc/passwd", "pairs/0/left.mp4", "server.py",
     "pairs/99999999999999999999", "page/index.html"],
)  # fmt: skip
def test_nothing_else_is_served(run: SmallRun, path: str):
    """Sent as it is, which a client would not do."""
    with (
        asked(run.folder) as server,
        socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=10) as connection,
    ):
        connection.sendall(f"GET /{server.token}/{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert connection.recv(4096).split()[1] == b"404"


def test_rows_that_point_outside_the_run_are_not_followed(run: SmallRun, tmp_path: Path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    rows = RunFiles.of(run.folder).clips()
    (run.folder / "clips" / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    keys = {"Base": "../../secret", "LoRA": str(tmp_path / "secret"), "Zero-shot": "link", "Mean LoRA": "missing"}
    images = {"s0": "../secret.png", "s1": "suite.json"}
    changed = [row.model_copy(update={"clip": keys[row.method], "image": images[row.scene]}) for row in rows]
    (run.folder / "clips.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in changed))
    with asked(run.folder, count=12) as server:
        for number in range(12):
            for name in ("left", "right", "image"):
                answer = get(server.address, f"pairs/{number}/{name}")
                assert answer.status_code == 404 and b"secret" not in answer.content


def test_answers_are_on_disk_and_taken_up(run: SmallRun):
    files = RunFiles.of(run.folder)
    with asked(run.folder, count=10) as server:
        pairs = server.session.pairs
        for number, choice in ((0, "left"), (1, "bad"), (0, "right")):
            answer = httpx.post(f"{server.address}pairs/{number}", json={"choice": choice, "seconds": 2.54})
            assert answer.json()["choices"][number] == choice
            # As it stands on disk, while the server runs.
            assert {vote.choice for vote in read_votes(files) if vote.cell == pairs[number].cell} == {choice}
    (vote,) = [vote for vote in read_votes(files) if vote.cell == pairs[0].cell]
    assert (vote.left, vote.right, vote.seconds) == (pairs[0].left.method, pairs[0].right.method, 2.5)
    assert vote.for_method(pairs[0].right.method) == 1
    with asked(run.folder, count=20) as server:
        found = dict(zip((pair.cell for pair in server.session.pairs), server.session.choices, strict=True))
        assert found[pairs[0].cell] == "right" and found[pairs[1].cell] == "bad" and server.session.answered == 2
    with asked(run.folder, "ben") as server:
        assert server.session.answered == 0


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"choice": "both"}, 400), ({"choice": None}, 400), ({"choice": ["left"]}, 400), ({}, 400),
        ({"choice": "left", "seconds": -1}, 400), ({"choice": "left", "seconds": True}, 400),
        (b'{"choice": "left", "seconds": NaN}', 400), (b'{"choice": "left", "seconds": 1e999}', 400),
        (b"{", 400), (b"[]", 400), (b"", 400), (b"\xff", 400), (b"[" * MAX_BODY, 400), (b" " * (MAX_BODY + 1), 413),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_refused(run: SmallRun, body: Any, status: int):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with asked(run.folder) as server:
        answer = httpx.post(f"{server.address}pairs/0", content=data)
        assert answer.status_code == status and answer.json()["error"]
        assert httpx.post(f"{server.address}pairs/60", json={"choice": "left"}).status_code == 404
        assert get(server.address, "session").json()["choices"] == [None] * 60
    assert read_votes(RunFiles.of(run.folder)) == []


def test_a_full_disk_is_told_and_the_answer_does_not_hold(run: SmallRun, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with asked(run.folder) as server:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            answer = httpx.post(f"{server.address}pairs/0", json={"choice": "left"})
        assert answer.status_code == 507 and "free the disk" in answer.json()["error"]
        assert server.session.answered == 0
        assert httpx.post(f"{server.address}pairs/0", json={"choice": "equal"}).status_code == 200
    assert [vote.choice for vote in read_votes(RunFiles.of(run.folder))] == ["equal"]


@pytest.mark.slow
def test_the_command(run: SmallRun):
    """Asks, keeps, ends with ctrl-C; goes on where it stopped, after a kill too."""
    program = "import sys; from p2e.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "eval", "compare", str(run.folder), "--rater", "ana", "--pairs", "8"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    out = ""
    for number, (end, code) in enumerate(((signal.SIGKILL, -9), (signal.SIGINT, 0))):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.match(rf"8 pairs, {number} answered; open (http://127\.0\.0\.1:\d+/[\w-]+/), end", line)
            assert found, line
            assert httpx.post(f"{found[1]}pairs/{number}", json={"choice": "left"}).status_code == 200
            process.send_signal(end)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == code and not err, err
    assert "2 of 8 answered, kept in" in out and len(read_votes(RunFiles.of(run.folder))) == 2


def test_mistakes_are_one_line(run: SmallRun, tmp_path: Path):
    assert_mistake(run_cli("eval", "compare", tmp_path / "none", "--rater", "ana"), tmp_path / "none", "suite.json")
    assert_mistake(run_cli("eval", "compare", run.folder, "--rater", "../ana"), "--rater")
    assert_mistake(run_cli("eval", "compare", run.folder, "--rater", "ana", "--method", "none"), "none", "Zero-shot")
    with asked(run.folder, "ben") as server:
        port = str(server.server_address[1])
        assert_mistake(run_cli("eval", "compare", run.folder, "--rater", "ana", "--port", port), "--port", port)
        assert_mistake(run_cli("eval", "compare", run.folder, "--rater", "ben"), "another process")
