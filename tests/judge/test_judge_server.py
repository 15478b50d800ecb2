"""The judge against a server that misbehaves on order: what is asked again, what is not, and what each clip gets."""

import base64
import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judge_clips import GOOD, completion, make_items, serving
from PIL import Image

from eval.judge import JudgeSettings, open_judge, score_with_judge
from eval.judge.settings import Example
from eval.judge.verdict import SCHEMA, Verdict
from eval.metrics.sampling import uniform_frames
from eval.metrics.scoring import Item
from eval.run_files import Score
from p2e.errors import ConfigError
from p2e.render.video import read_video


def settings(url: str, **changes: Any) -> JudgeSettings:
    plain = {"url": url, "model": "judge", "concurrency": 4, "backoff_s": 0.0, "retries": 3, "repeat_share": 0.0}
    return JudgeSettings.parse({**plain, **changes})


def judged(url: str, items: list[Item], known: dict[str, Score] | None = None, **changes: Any) -> dict[str, Score]:
    """The totals by clip."""
    chosen = settings(url, **changes)
    rows = [row for rows in score_with_judge(open_judge(chosen), chosen, items, known) for row in rows]
    return {row.clip: row for row in rows if row.metric == "judge"}


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    return make_items(tmp_path_factory.mktemp("clips"), 6)


def wish(body: dict[str, Any]) -> int:
    text = body["messages"][-1]["content"][-1]["text"]
    return int(text.rpartition("wish ")[2].strip('"'))


def test_what_is_sent(items: list[Item]) -> None:
    """The frames that the CLIP score takes, the picture, the description; no name of a method, file or effect."""
    with serving(lambda body, number: (200, completion(), {})) as (url, bodies):
        scores = judged(url, items[:1])
    body = bodies[0]["body"]
    assert bodies[0]["path"] == "/v1/chat/completions" and len(bodies) == 1
    parts = body["messages"][-1]["content"]
    assert [part["type"] for part in parts] == ["image_url", "video_url", "text"]
    head, *frames = parts[1]["video_url"]["url"].split(",")
    assert head == "data:video/jpeg;base64" and len(frames) == 16
    clip = read_video(items[0].video)
    for index, data in zip(uniform_frames(17), frames, strict=True):
        seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)
        assert np.abs(seen - clip.frames[index]).mean() < 4
    video = body["media_io_kwargs"]["video"]
    assert video["frames_indices"] == list(uniform_frames(17)) and video["total_num_frames"] == 17
    assert (video["fps"], video["num_frames"], video["do_sample_frames"]) == (clip.fps, 16, False)
    assert video["duration"] == pytest.approx(17 / clip.fps)
    assert body["structured_outputs"] == {"json": SCHEMA, "disable_any_whitespace": True}
    words = json.dumps([{**body, "messages": body["messages"][:-1]}, parts[-1]])
    assert "secret" not in json.dumps(body) and "effect_0" not in words and "clip0" not in words
    assert scores["clip0"].value == 86 and scores["clip0"].details["prompt_tokens"] == 123


def test_five_scores_a_clip(items: list[Item]) -> None:
    failed = json.dumps({**GOOD, "hard_fail": True})
    with serving(lambda body, number: (200, completion(failed), {})) as (url, _):
        chosen = settings(url)
        (rows,) = score_with_judge(open_judge(chosen), chosen, items[:1])
    assert {row.metric: row.value for row in rows} == {
        "judge": 20, "judge.effect": 51, "judge.context": 18, "judge.temporal": 17, "judge.hard_fail": 1
    }  # fmt: skip
    assert len({row.key for row in rows}) == 5 and {row.clip for row in rows} == {"clip0"}
    assert rows[0].details["reason"] == GOOD["reason"] and rows[0].details["model"] == "judge"
    assert rows[0].details["attempts"] == 1 and len(rows[0].details["rubric"]) == 64


@pytest.mark.parametrize("status", [0, 408, 429, 500, 502, 503])
def test_what_passes_is_asked_again(items: list[Item], status: int) -> None:
    with serving(lambda body, number: (status if number < 2 else 200, completion(), {})) as (url, bodies):
        score = judged(url, items[:1])["clip0"]
    assert score.value == 86 and score.details["attempts"] == 3 == len(bodies)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
def test_what_stays_is_asked_once(items: list[Item], status: int) -> None:
    with serving(lambda body, number: (status, {"error": "no\nsuch"}, {})) as (url, bodies):
        score = judged(url, items[:1])["clip0"]
    assert score.value is None and score.error.startswith(f"http_{status}: ") and len(bodies) == 1


def test_a_server_that_stays_away_is_given_up(items: list[Item]) -> None:
    with serving(lambda body, number: (503, {}, {})) as (url, bodies):
        score = judged(url, items[:1], retries=2)["clip0"]
    assert score.value is None and score.error.startswith("http_503") and len(bodies) == 3
    assert judged(url, items[:1], retries=1)["clip0"].error.startswith("unreachable")


def test_a_slow_answer_is_a_timeout_and_a_wait_is_heeded(items: list[Item]) -> None:
    def slow(body: dict[str, Any], number: int) -> Any:
        time.sleep(1.5 if number == 0 else 0)
        return (429 if number == 1 else 200), completion(), {"Retry-After": "1"}

    start = time.monotonic()
    with serving(slow) as (url, bodies):
        score = judged(url, items[:1], timeout_s=0.5)["clip0"]
    assert score.value == 86 and len(bodies) == 3 and time.monotonic() - start > 1.5


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (completion("{"), "not_json"),
        (completion(refusal="I will not."), "refused"),
        (completion(finish="content_filter"), "refused"),
        (completion(["text"]), "not_a_completion"),
        ({"choices": []}, "not_a_completion"),
        ([], "not_a_completion"),
        (b"<html>", "not_a_completion"),
        (b"\xff\xfe", "not_a_completion"),
        ({"choices": [{"message": {"content": json.dumps(GOOD)}}], "usage": {"prompt_tokens": "many"}}, "not_a_co"),
    ],
)
def test_an_answer_that_is_none(items: list[Item], reply: Any, code: str) -> None:
    with serving(lambda body, number: (200, reply, {})) as (url, bodies):
        score = judged(url, items[:1])["clip0"]
    assert score.value is None and score.error.startswith(code) and len(bodies) == 1


def test_an_answer_that_was_cut_off_gets_more_room(items: list[Item]) -> None:
    with serving(lambda body, number: (200, completion(finish="length"), {})) as (url, bodies):
        score = judged(url, items[:1], max_tokens=100)["clip0"]
    assert score.error.startswith("cut_off") and [one["body"]["max_tokens"] for one in bodies] == [100, 200, 400]


def test_one_poisoned_item_is_its_own_affair(items: list[Item], tmp_path: Path) -> None:
    """A file that is no clip, one that is not there, a picture that is none, and a request that the server refuses."""
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    context = items[0].context
    bad = [
        Item("a", str(broken), context), Item("b", str(tmp_path / "absent.mp4"), context),
        Item("c", items[0].video, type(context)("wish 0", str(broken), "effect_0")),
    ]  # fmt: skip

    def reply(body: dict[str, Any], number: int) -> Any:
        return (422 if wish(body) == 3 else 200), completion(), {}

    with serving(reply) as (url, _):
        scores = judged(url, [*items[:2], *bad, *items[2:]])
    codes = {clip: score.error.partition(":")[0] for clip, score in scores.items() if score.value is None}
    assert codes == {"a": "not_a_video", "b": "missing", "c": "not_an_image", "clip3": "http_422"}
    assert sum(score.value == 86 for score in scores.values()) == 5


def test_so_many_at_once_and_no_more(items: list[Item]) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def reply(body: dict[str, Any], number: int) -> Any:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.3)
        with lock:
            now -= 1
        return 200, completion(), {}

    with serving(reply) as (url, _):
        judged(url, items, concurrency=3)
    assert most == 3


def test_what_is_known_is_not_asked_again_and_what_failed_is(items: list[Item]) -> None:
    def reply(body: dict[str, Any], number: int) -> Any:
        return (400 if number == 0 and len(seen) == 0 else 200), completion(), {}

    seen: dict[str, Score] = {}
    with serving(reply) as (url, bodies):
        chosen = settings(url, concurrency=1)
        rows = [row for rows in score_with_judge(open_judge(chosen), chosen, items[:3]) for row in rows]
        seen = {row.key: row for row in rows}
        assert len(bodies) == 3 and sum(bool(row.error) for row in rows) == 5
        again = judged(url, items[:3], seen, concurrency=1)
        assert set(again) == {"clip0"} and again["clip0"].value == 86 and len(bodies) == 4
        # Another model is another judge.
        assert len(judged(url, items[:3], seen, model="other")) == 3


def test_repeats_have_seeds_of_their_own(items: list[Item]) -> None:
    def reply(body: dict[str, Any], number: int) -> Any:
        return 200, completion(json.dumps({**GOOD, "effect": 40 + body["seed"]})), {}

    with serving(reply) as (url, bodies):
        scores = judged(url, items, repeat_share=1.0, repeats=3, seed=5)
    assert len(bodies) == 18 and {one["body"]["seed"] for one in bodies} == {5, 6, 7}
    for score in scores.values():
        assert score.value == 80 and score.details["repeats"] == [80, 81, 82] and score.details["repeats_std"] == 1


def test_examples_come_first(items: list[Item]) -> None:
    shown = Example(video=items[5].video, image=items[5].context.image, prompt="wish 5", verdict=Verdict(**GOOD))
    with serving(lambda body, number: (200, completion(), {})) as (url, bodies):
        assert judged(url, items[:1], examples=(shown,))["clip0"].value == 86
    messages = bodies[0]["body"]["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert json.loads(messages[2]["content"]) == GOOD and "wish 5" in messages[1]["content"][-1]["text"]


def test_an_example_of_another_length_is_refused(items: list[Item], tmp_path: Path) -> None:
    (other,) = make_items(tmp_path, 1, frames=9)
    shown = Example(video=other.video, image=other.context.image, prompt="it", verdict=Verdict(**GOOD))
    with serving(lambda body, number: (200, completion(), {})) as (url, bodies):
        assert judged(url, items[:1], examples=(shown,))["clip0"].error.startswith("example_differs")
    assert not bodies


def test_the_key_comes_from_the_environment(items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda body, number: (200, completion(), {})) as (url, bodies):
        with pytest.raises(ConfigError, match="JUDGE_TEST_KEY is not set"):
            open_judge(settings(url, key_env="JUDGE_TEST_KEY"))
        monkeypatch.setenv("JUDGE_TEST_KEY", "word")
        judged(url, items[:1], key_env="JUDGE_TEST_KEY")
    assert bodies[0]["headers"]["Authorization"] == "Bearer word"
