"""Coverage, noise, calibration and keys: what is said of many verdicts."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_clips import make_items

from eval.judge import JudgeSettings
from eval.judge.calibration import KINDS, calibration_clips, held_orders, write_calibration
from eval.judge.coverage import coverage, headline
from eval.judge.frames import chosen_frames
from eval.judge.noise import noise
from eval.judge.scoring import judge_key
from eval.metrics.reading import read_clip
from eval.run_files import Score
from p2e.errors import ConfigError, InputError
from p2e.render.video import Clip


def score(clip: str, value: float | None, metric: str = "judge", error: str = "", **details: Any) -> Score:
    return Score(
        key=f"{clip}{metric}", clip=clip, effect="it", metric=metric, recipe="judge/1", value=value, error=error,
        details=details,
    )  # fmt: skip


def test_no_headline_below_the_threshold() -> None:
    scores = [score(f"c{i}", 50.0 + i) for i in range(9)] + [score("c9", None, error="http_500: no")]
    found = coverage(scores)
    assert (found.ok, found.total, found.errors) == (9, 10, {"http_500": 1}) and found.share == 0.9
    assert str(found) == "9 of 10 clips (1 http_500)"
    assert headline(scores, 0.9) == 54 and headline(scores, 0.95) is None
    assert headline(scores, 0.9, expected=11) is None and coverage(scores, expected=11).errors["not_judged"] == 1
    assert headline([], 0.0) is None and coverage([]).share == 0


def test_noise_is_pooled_within_clips() -> None:
    scores = [score("a", 80, repeats=[80, 82, 84]), score("b", 10, repeats=[10, 10]), score("c", 5), score("d", 1)]
    found = noise(scores)
    assert found is not None and found.std == pytest.approx((8 / 3) ** 0.5)
    assert (found.clips, found.answers) == (2, 5)
    assert noise([score("c", 5), score("d", 3, repeats=[3])]) is None


@given(st.lists(st.lists(st.integers(0, 100), min_size=2, max_size=5), min_size=1, max_size=6))
def test_a_shift_of_a_clip_is_no_noise(groups: list[list[int]]) -> None:
    plain = noise([score(str(i), 0, repeats=group) for i, group in enumerate(groups)])
    moved = noise([score(str(i), 0, repeats=[v + 7 * i for v in group]) for i, group in enumerate(groups)])
    assert plain is not None and moved is not None and moved.std == pytest.approx(plain.std, abs=1e-9)


def test_calibration_clips_are_what_they_say(tmp_path: Path) -> None:
    clips = calibration_clips("red_mood", "levitation", 3)
    assert tuple(clips) == KINDS and len({clip.frames.shape for clip in clips.values()}) == 1
    still, truth = clips["still"].frames, clips["truth"].frames
    assert (still == still[:1]).all() and (still[0] == truth[0]).all() and (truth[-1] != truth[0]).mean() > 0.5
    assert (clips["wrong"].frames[0] == truth[0]).all() and (clips["wrong"].frames != truth).any()
    with pytest.raises(InputError, match="name another"):
        calibration_clips("red_mood", "red_mood", 3)
    items = write_calibration(tmp_path, [("red_mood", "levitation", 3)], {"red_mood": "it turns red"})
    assert [item.clip for item in items] == [f"red_mood/3/{kind}" for kind in KINDS]
    for item in items:
        assert len(read_clip(item.video).frames) == 17 and not any(kind in Path(item.video).name for kind in KINDS)


def calibrated(fails: float = 1, **totals: float | None) -> dict[str, float]:
    rows = [score(f"case/0/{kind}", value) for kind, value in totals.items()]
    rows += [score(f"case/0/{kind}", fails, "judge.hard_fail") for kind in ("still", "noise")]
    random.Random(0).shuffle(rows)
    return {order.name: order.share for order in held_orders(rows)}


def test_orders() -> None:
    good = calibrated(truth=90, wrong=15, still=10, noise=0)
    assert good == dict.fromkeys(
        ("truth > wrong", "truth > still", "truth > noise", "still fails hard", "noise fails hard"), 1.0
    )  # fmt: skip
    assert calibrated(truth=15, wrong=15, still=10, noise=0)["truth > wrong"] == 0
    assert calibrated(truth=None, wrong=15, still=10, noise=0)["truth > still"] == 0
    assert calibrated(0, truth=90, wrong=15, still=10, noise=0)["still fails hard"] == 0
    assert not any(order.holds(0) for order in held_orders([]))


def test_a_key_is_all_that_a_score_depends_on(tmp_path: Path) -> None:
    (item,) = make_items(tmp_path, 1)
    plain = JudgeSettings(repeat_share=0)

    def key(change: dict[str, Any] | None = None, item: Any = item, metric: str = "judge", image: str = "i") -> str:
        return judge_key(item, metric, JudgeSettings.parse({"repeat_share": 0, **(change or {})}), image)

    other_words = replace(item, context=replace(item.context, prompt="another"))
    changes = [
        {"model": "m"}, {"revision": "r"}, {"temperature": 0.5}, {"max_tokens": 600}, {"seed": 1}, {"frames": 8},
        {"side": 64}, {"repeat_share": 1},
    ]  # fmt: skip
    different = [key(), key(image="j"), key(metric="judge.effect"), key(item=replace(item, clip="c")),
                 key(item=other_words), *(key(change) for change in changes)]  # fmt: skip
    assert len(set(different)) == len(different)
    for same in ({"url": "http://elsewhere/v1"}, {"concurrency": 1}, {"retries": 0}, {"coverage": 0.5}):
        assert key(same) == key() == judge_key(item, "judge", plain, "i")


def test_settings_that_cannot_be_are_refused() -> None:
    for wrong in (
        {"frames": 15},
        {"modle": "x"},
        {"url": "ftp://x"},
        {"repeats": 1},
        {"coverage": 2},
        {"backend": "x"},
    ):
        with pytest.raises(ConfigError, match="judge: "):
            JudgeSettings.parse(wrong, "judge")


@given(st.integers(1, 130), st.sampled_from([2, 8, 16, 32]))
def test_frames_are_spread_and_their_places_told(total: int, count: int) -> None:
    pixels = np.arange(total, dtype=np.uint8)[:, None, None, None].repeat(40, 1).repeat(20, 2).repeat(3, 3)
    frames = chosen_frames(Clip(np.ascontiguousarray(pixels), 16.0), count, 32)
    assert frames.pixels.shape == (count, 32, 16, 3) and frames.indices[0] == 0 and frames.indices[-1] == total - 1
    assert [int(frame[0, 0, 0]) for frame in frames.pixels] == list(frames.indices)
    assert frames.metadata["total_num_frames"] == total and frames.metadata["duration"] == total / 16
