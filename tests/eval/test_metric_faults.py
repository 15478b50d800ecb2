"""Files that are no good clips: every metric has a word for them, and the clips beside them their scores."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe

from eval.metrics import Context, Item, Unscorable, open_metric, read_clip, score_clips
from eval.metrics.registry import METRICS
from eval.suite import MetricSettings
from p2e.render.video import Clip, write_mp4

GOOD = Path(__file__).parent / "clips" / "red_mood.mp4"
CONTEXT = Context("it turns red", str(GOOD.with_suffix(".png")), "red_mood", "world:3")
NAMES = ("blend_smoothness", "mean_motion", "moving_share", "first_frame", "oracle")


def ffmpeg(*arguments: str) -> None:
    subprocess.run([get_ffmpeg_exe(), "-v", "error", *arguments], check=True)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Code -> a file."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video\n" * 100)
    (folder / "cut.mp4").write_bytes(GOOD.read_bytes()[:600])
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac", str(folder / "sound.mp4"))
    whole = GOOD.read_bytes()
    (folder / "lost.mp4").write_bytes(whole[: len(whole) * 3 // 4])  # its index comes first, so that much can be shown
    (folder / "rotten.mp4").write_bytes(whole[:-3000] + bytes(2000) + whole[-1000:])
    return {
        "missing": folder / "none.mp4", "empty_file": folder / "empty.mp4", "not_a_video": folder / "text.mp4",
        "not_a_video ": folder / "cut.mp4", "no_stream": folder / "sound.mp4", "missing ": folder,
        "damaged": folder / "lost.mp4", "damaged ": folder / "rotten.mp4",
    }  # fmt: skip


def test_files_that_cannot_be_read(bad: dict[str, Path]) -> None:
    for code, path in bad.items():
        with pytest.raises(Unscorable) as error:
            read_clip(path)
        assert error.value.code == code.strip() and "\n" not in str(error.value)


def test_one_bad_clip_is_nobody_elses_affair(bad: dict[str, Path]) -> None:
    metrics = [open_metric(MetricSettings(name=name)) for name in NAMES]
    items = [Item(code, str(path), CONTEXT) for code, path in bad.items()]
    found = score_clips(metrics, [*items, Item("good", str(GOOD), CONTEXT)])
    assert len(found) == len(NAMES) * (len(bad) + 1)
    for score in found:
        if score.clip == "good":
            assert score.value is not None and not score.error
        else:
            assert score.value is None and score.error.startswith(f"{score.clip.strip()}: ")


@pytest.mark.parametrize("frames", [1, 2])
def test_clips_that_are_too_short(tmp_path: Path, frames: int) -> None:
    write_mp4(tmp_path / "short.mp4", Clip(np.full((frames, 32, 32, 3), 90, np.uint8)))
    found = {
        score.metric: score.error.partition(":")[0]
        for score in score_clips(
            [open_metric(MetricSettings(name=name)) for name in NAMES],
            [Item("s", str(tmp_path / "short.mp4"), CONTEXT)],
        )
    }
    few = "too_few_frames"
    assert found == {
        "blend_smoothness": few, "mean_motion": few if frames == 1 else "", "moving_share": few if frames == 1 else "",
        "first_frame": "", "oracle": "wrong_size",
    }  # fmt: skip


def test_odd_sizes_and_missing_pictures(tmp_path: Path) -> None:
    write_mp4(tmp_path / "odd.mp4", Clip(np.random.default_rng(0).integers(0, 255, (5, 33, 47, 3), np.uint8)))
    metrics = [open_metric(MetricSettings(name=name)) for name in NAMES]
    context = Context("x", str(tmp_path / "none.png"), "red_mood", "world:3")
    found = {
        score.metric: score.error.partition(":")[0]
        for score in score_clips(metrics, [Item("o", str(tmp_path / "odd.mp4"), context)])
    }
    assert found == dict.fromkeys(NAMES, "") | {"first_frame": "cannot_be_read", "oracle": "wrong_size"}


class Odd:
    """A metric with a fault."""

    name, recipe = "odd", "odd/1"

    def __init__(self, value: Any) -> None:
        self.value = value

    def score(self, clip: Clip, context: Context) -> tuple[float, dict[str, Any]]:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value, {}


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (float("nan"), "not_finite: "), (float("inf"), "not_finite: "),
        (MemoryError("no\nroom"), "internal: MemoryError: no room"),
    ],
)  # fmt: skip
def test_a_faulty_metric_has_no_value(value: Any, error: str) -> None:
    fine = open_metric(MetricSettings(name="mean_motion"))
    first, second = score_clips([Odd(value), fine], [Item("good", str(GOOD), CONTEXT)])
    assert first.value is None and first.error.startswith(error) and second.value is not None


@pytest.fixture
def remote() -> Iterator[str]:
    system = fsspec.filesystem("memory")
    system.pipe_file("/clips/good.mp4", GOOD.read_bytes())
    yield "memory://clips"
    system.rm("/clips", recursive=True)


def test_clips_behind_a_url(remote: str) -> None:
    assert (read_clip(f"{remote}/good.mp4").frames == read_clip(GOOD).frames).all()
    for path, code in ((f"{remote}/none.mp4", "missing"), ("nosuch://x/y.mp4", "unreadable")):
        with pytest.raises(Unscorable, match=f"^{code}: "):
            read_clip(path)


def test_every_metric_is_listed() -> None:
    import eval.metrics

    assert eval.metrics.__doc__ is not None and all(f"| {name} |" in eval.metrics.__doc__ for name in METRICS)
