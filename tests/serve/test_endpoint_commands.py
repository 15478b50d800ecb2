"""`p2e predict` and `p2e render` with an endpoint: what they write, refuse, and say when it fails."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_runner import assert_mistake, files_in, run_cli, run_well
from databases import Clock
from gateways import FakePredictor, Overloaded, picture, services, tokens
from running import Running, running

from p2e.client import Client, Videos

ROOT = Path(__file__).parents[2]
LIGHT = """
import sys
from p2e.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert not stop.code, stop.code
print([name for name in ("torch", "diffusers", "transformers", "numpy") if name in sys.modules])
"""


@pytest.fixture
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(services(tmp_path_factory.mktemp("service"), Clock())) as found:
        yield found


@pytest.fixture
def key(up: Running, monkeypatch: pytest.MonkeyPatch) -> str:
    found = tokens["alice"].removeprefix("Bearer ")
    monkeypatch.setenv("P2E_API_KEY", found)
    return found


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "fox.png"
    path.write_bytes(picture())
    return path


def program(*arguments: object) -> list[str]:
    return [sys.executable, "-c", LIGHT, *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.usefixtures("key")
def test_predict(up: Running, tmp_path: Path) -> None:
    out = tmp_path / "new" / "melt.safetensors"
    said = run_well("predict", "it melts", "--endpoint", up.address, "-o", out, "--strength", 0.5)
    (effect,) = up.services.effects.page("alice").effects
    assert said == f"wrote {out}: rank 4, {effect.id}\n" and effect.source == {"prompt": "it melts", "strength": 0.5}
    assert files_in(tmp_path) == {out} and out.stat().st_size == effect.bytes


@pytest.mark.usefixtures("key")
def test_render(up: Running, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "fox.mp4"
    said = run_well(
        "render", image, "a fox", "--endpoint", up.address, "-o", out, "--effect", "it melts", "--strength", 0.5,
        "--seed", 7, "--frames", 5, "--steps", 3, "--guidance", 2, "--height", 32, "--width", 64,
    )  # fmt: skip
    (job,) = up.services.jobs.page("alice").jobs
    assert said == f"wrote {out}: 0.625 s of 64x32, {job.id}\n" and out.read_bytes()[4:8] == b"ftyp"
    assert job.request["strength"] == 0.5 and job.request["seed"] == 7 and job.steps == 3 and job.effect_id
    assert job.request["clip"]["guidance"] == 2 and files_in(tmp_path) == {out, image}
    run_well("render", image, "a fox", "--endpoint", f"{up.address}/v1", "-o", out, "--effect-id", job.effect_id)
    newest = up.services.jobs.page("alice").jobs[0]
    assert newest.effect_id == job.effect_id and newest.request["strength"] == 1


@pytest.mark.parametrize(
    "option",
    [("--checkpoint", "x"), ("--base", "x"), ("--format", "kohya"), ("--dtype", "float32"), ("--device", "cpu")],
)
def test_predict_refuses_what_is_the_endpoints(option: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    assert_mistake(run_cli("predict", "x", "--endpoint", "http://127.0.0.1:9", "-o", out, *option), option[0], "leave")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("--base", "x"), "--base"), (("--lora", "x.safetensors"), "--lora"), (("--schedule", "euler"), "--schedule"),
        (("--shift", 5), "--shift"), (("--fp8",), "--fp8"), (("--scale", 2), "--scale"),
        (("--device", "cpu"), "--device"), (("--effect", "x", "--effect-id", "y"), "--effect-id"),
        (("--strength", 1), "--strength"), (("--height", 32), "--height"), (("--width", 32), "--width"),
        (("-o", "x.gif"), ".mp4"),
    ],
)  # fmt: skip
def test_render_refuses_what_makes_no_sense(options: tuple[object, ...], name: str, image: Path) -> None:
    asked = ("render", image, "x", "--endpoint", "http://127.0.0.1:9", "-o", image.with_name("x.mp4"))
    assert_mistake(run_cli(*asked, *options), name)


@pytest.mark.parametrize("options", [("--effect", "x"), ("--effect-id", "x"), ("--strength", "1")])
def test_effects_of_an_endpoint_need_one(options: tuple[str, str], image: Path) -> None:
    result = run_cli("render", image, "x", "-o", image.with_name("x.mp4"), *options)
    assert_mistake(result, options[0], "--endpoint", "--lora")


def test_what_goes_wrong_is_one_line(
    up: Running, key: str, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client.__init__, "__defaults__", (None, 5.0, 0))  # no second tries
    at, out = ("--endpoint", up.address), image.with_name("x.mp4")
    nowhere = ("--endpoint", "http://127.0.0.1:9")
    assert_mistake(run_cli("predict", "x", *nowhere, "-o", tmp_path / "x"), "http://127.0.0.1:9", "cannot be reached")
    assert_mistake(run_cli("render", image, "x", *nowhere, "-o", out), "http://127.0.0.1:9", "cannot be reached")
    assert_mistake(run_cli("render", image, "x", "--endpoint", "nowhere", "-o", out), "nowhere", "http://")
    assert_mistake(run_cli("render", tmp_path / "none.png", "x", *at, "-o", out), "none.png", "cannot be read")
    assert_mistake(run_cli("render", image, " ", *at, "-o", out), "prompt")
    assert_mistake(run_cli("render", image, "x", *at, "-o", out, "--frames", 4), "num_frames", "5")
    assert_mistake(run_cli("render", image, "x", *at, "-o", out, "--effect-id", "eff_" + "0" * 32), "no effect")
    assert_mistake(run_cli("render", image, "x", *at, "-o", tmp_path), str(tmp_path))
    up.worker.failing = ("oom", "out of\x1b[31m memory")
    result = run_cli("render", image, "x", *at, "-o", out)
    assert_mistake(result, "video_", "out of", "(oom)")
    assert "\x1b" not in result.err
    assert isinstance(up.services.predictor, FakePredictor)
    up.services.predictor.error = Overloaded("busy", retry_after_s=3)
    assert_mistake(run_cli("predict", "x", *at, "-o", tmp_path / "x"), "busy")
    for wrong in ("p2e-wrong", ""):
        monkeypatch.setenv("P2E_API_KEY", wrong)
        result = run_cli("predict", "x", *at, "-o", tmp_path / "x")
        assert_mistake(result, "P2E_API_KEY")
        assert "p2e-wrong" not in result.err and key not in result.err
    assert files_in(tmp_path) == {image}


@pytest.mark.usefixtures("key")
def test_a_video_that_another_cancels(up: Running, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    up.worker.go.clear()
    submit = up.services.jobs.submit

    def submitted(*values: object, **more: object) -> object:
        job, kept = submit(*values, **more)  # pyright: ignore
        return up.services.jobs.cancel(job.id, "alice"), kept

    monkeypatch.setattr(up.services.jobs, "submit", submitted)
    result = run_cli("render", image, "x", "--endpoint", up.address, "-o", image.with_name("x.mp4"))
    assert_mistake(result, "it was cancelled")


@pytest.mark.usefixtures("key")
def test_nothing_heavy_is_imported(up: Running, image: Path, tmp_path: Path) -> None:
    at = ("--endpoint", up.address)
    for arguments in (("predict", "x", *at, "-o", tmp_path / "x.safetensors"),
                      ("render", image, "x", *at, "-o", tmp_path / "x.mp4")):  # fmt: skip
        result = subprocess.run(program(*arguments), env=environment(), capture_output=True, text=True, check=True)
        assert result.stdout.endswith("\n[]\n") and result.stdout.startswith("wrote ") and not result.stderr


@pytest.mark.usefixtures("key")
def test_interrupting_cancels_the_video(up: Running, image: Path) -> None:
    up.worker.step_s = 0.2
    out = image.with_name("x.mp4")
    asked = ("render", image, "x", "--endpoint", up.address, "-o", out, "--steps", 60)
    command = [sys.executable, "-c", "from p2e.cli import main; import sys; main(sys.argv[1:])", *map(str, asked)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not (jobs := up.services.jobs.page("alice").jobs) or not jobs[0].steps_done:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said, complained = process.communicate(timeout=60)
    assert (process.returncode, said, complained) == (130, b"", b"")
    while not (job := up.services.jobs.get(jobs[0].id, "alice")).ended:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert job.status == "cancelled" and not out.exists()


@pytest.mark.usefixtures("key")
def test_interrupting_too_late_is_said(up: Running, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = Videos.wait

    def interrupted(*values: Any) -> None:
        wait(*values)
        raise KeyboardInterrupt

    monkeypatch.setattr(Videos, "wait", interrupted)
    result = run_cli("render", image, "x", "--endpoint", up.address, "-o", image.with_name("x.mp4"))
    assert result.code == 130 and result.err.startswith("p2e: video_") and "completed already" in result.err
