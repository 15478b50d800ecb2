"""The judge against vLLM itself, which runs the tiny Qwen3-VL that ships with p2e: the schema, the frames, a poisoned
item, a server that is killed and started again, and engines on a cluster."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from judge_clips import make_items
from local_ray import local_ray

from eval.judge import JudgeSettings, open_judge, score_with_judge
from eval.judge.base import JudgeItem
from eval.judge.calibration import write_calibration
from eval.judge.local_backend import TINY, model_inputs
from eval.judge.parse import parse_verdict
from eval.judge.requests import Question, chat_request
from eval.judge.tiny import build_processor
from eval.judge.train import TrainTinyConfig
from eval.metrics.scoring import Item
from eval.run_files import Score
from p2e.world.effects import EFFECTS

if importlib.util.find_spec("vllm") is None and not os.environ.get("P2E_REQUIRE_VLLM"):
    pytest.skip("no vLLM is there; `make vllm` installs it on Linux x86-64", allow_module_level=True)

pytestmark = pytest.mark.slow
START_S = 400
QUIET = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}  # fmt: skip


class Server:
    """vLLM on a port of its own, in a process group that ends with it."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(TINY), "--port",
            str(self.port), "--host", "127.0.0.1", "--served-model-name", "judge", "--max-model-len", "4096",
            "--max-num-seqs", "8", "--enforce-eager", "--dtype", "float32", "--skip-mm-profiling",
            "--trust-request-mm-kwargs", "--structured-outputs-config",
            '{"backend":"xgrammar","disable_any_whitespace":true}',
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **QUIET}, start_new_session=True
            )

    def wait(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/models", timeout=2, trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        pytest.fail(f"vLLM did not come up:\n{self.log.read_text(errors='replace')[-3000:]}")

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("vllm") / "log.txt")
    try:
        running.wait()
        yield running
    finally:
        running.kill()


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    return make_items(tmp_path_factory.mktemp("clips"), 2, frames=81, side=96)


def settings(server: Server, **changes: Any) -> JudgeSettings:
    return JudgeSettings.parse(
        {"url": server.url, "model": "judge", "concurrency": 4, "retries": 0, "repeat_share": 0, **changes}
    )


def judged(settings: JudgeSettings, items: list[Item]) -> dict[str, Score]:
    rows = [row for rows in score_with_judge(open_judge(settings), settings, items) for row in rows]
    return {row.clip: row for row in rows if row.metric == "judge"}


def poisoned(items: list[Item], folder: Path) -> list[Item]:
    """A prompt too long for the model, one that spells the chat's own tokens, and a file that is no clip."""
    broken = folder / "broken.mp4"
    broken.write_bytes(b"no video")
    long = replace(items[0], clip="long", context=replace(items[0].context, prompt="so long " * 20_000))
    spelt = replace(items[0], clip="spelt", context=replace(items[0].context, prompt="<|video_pad|><|im_end|>"))
    return [long, *items, spelt, replace(items[0], clip="broken", video=str(broken))]


def test_the_model_sees_sixteen_frames_and_keeps_the_schema(server: Server, items: list[Item]) -> None:
    """81 frames, of which vLLM's own loader would keep 10: the prompt has as many tokens as sixteen frames with the
    times of the clip make."""
    asked = settings(server)
    one = JudgeItem("key", items[0].clip, items[0].video, items[0].context.image, items[0].context.prompt)
    shown = Question(asked).shown(one)
    reply = httpx.post(
        f"{server.url}/chat/completions", json=chat_request(asked, shown, 0, 512), timeout=300, trust_env=False
    ).json()
    choice = reply["choices"][0]
    assert parse_verdict(choice["message"]["content"], choice["finish_reason"]).total >= 0
    inputs = model_inputs(build_processor(TrainTinyConfig().model), shown)
    assert inputs["video_grid_thw"].tolist() == [[8, 6, 6]]
    assert reply["usage"]["prompt_tokens"] == inputs["input_ids"].shape[1]


def test_one_poisoned_item_among_good_ones(server: Server, items: list[Item], tmp_path: Path) -> None:
    scores = judged(settings(server), poisoned(items, tmp_path))
    assert scores["long"].error.startswith("http_400") and scores["broken"].error.startswith("not_a_video")
    assert all(scores[one.clip].value is not None for one in items) and scores["spelt"].value is not None


def test_a_server_says_what_the_model_says_here(server: Server, tmp_path: Path) -> None:
    """The trained judge, by both ways: the same verdicts but for JPEG, and the truth above the rest."""
    effect = next(spec for spec in EFFECTS if spec.name == "red_mood")
    items = write_calibration(tmp_path, [("red_mood", "levitation", 3)], {effect.name: effect.train_prompts[0]})
    here = judged(JudgeSettings.parse({"backend": "local", "model": "tiny", "repeat_share": 0}), items)
    there = judged(settings(server), items)
    totals = {name.rpartition("/")[2]: score.value or 0.0 for name, score in there.items()}
    assert all(totals["truth"] > totals[kind] for kind in ("wrong", "still", "noise")), totals
    assert totals == pytest.approx({name.rpartition("/")[2]: score.value for name, score in here.items()}, abs=15)


def test_a_server_killed_and_started_again_loses_nothing(server: Server, items: list[Item]) -> None:
    server.kill()
    server.start()
    scores = judged(settings(server, retries=100, backoff_s=2.0), items)
    assert all(score.value is not None for score in scores.values())
    assert any(score.details["attempts"] > 1 for score in scores.values())
    server.kill()  # its memory is for what follows


def test_engines_of_a_cluster(items: list[Item], tmp_path: Path) -> None:
    """Ray Data starts the engine, one poisoned item among good ones, and ends it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        engine = {
            "max_model_len": 4096, "max_num_seqs": 8, "enforce_eager": True, "dtype": "float32",
            "skip_mm_profiling": True,
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        }  # fmt: skip
        asked = JudgeSettings.parse(
            {"backend": "ray", "model": "tiny", "gpus": 0, "concurrency": 4, "repeat_share": 0, "engine": engine}
        )
        with local_ray():
            scores = judged(asked, poisoned(items, tmp_path))
    assert scores["long"].error.startswith("engine: ") and scores["broken"].error.startswith("not_a_video")
    assert all(scores[one.clip].value is not None for one in items) and scores["spelt"].value is not None
