"""Metrics that need no weights: golden numbers on two clips of the world, and what must hold on any clip."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from eval.metrics import Context, Item, Unscorable, open_metric, read_clip, score_clips, score_key
from eval.metrics.oracle import true_clip
from eval.metrics.sampling import uniform_frames
from eval.suite import MetricSettings
from p2e.errors import ConfigError
from p2e.render.video import Clip, write_mp4

CLIPS = Path(__file__).parent / "clips"
SCENES = {"red_mood": "world:3", "levitation": "world:20"}
# Of the true effects, coded with crf 12.
GOLDEN = {
    "red_mood": {"blend_smoothness": 99.6460, "mean_motion": 2.0526, "moving_share": 100.0, "first_frame": 35.949,
                 "oracle": 0.99698},
    "levitation": {"blend_smoothness": 98.7473, "mean_motion": 1.6485, "moving_share": 23.6979, "first_frame": 31.718,
                   "oracle": 0.96211},
}  # fmt: skip
PLAIN = tuple(GOLDEN["red_mood"])


def item(name: str) -> Item:
    return Item(name, str(CLIPS / f"{name}.mp4"), Context("it is", str(CLIPS / f"{name}.png"), name, SCENES[name]))


def metric(name: str, **options: object):
    return open_metric(MetricSettings(name=name, options=options))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_numbers(name: str) -> None:
    found = score_clips([metric(one) for one in PLAIN], [item(name)])
    assert [score.metric for score in found] == list(PLAIN) and not any(score.error for score in found)
    for score in found:
        assert score.value == pytest.approx(GOLDEN[name][score.metric], rel=2e-4), score.metric
        assert (score.clip, score.effect) == (name, name) and score.recipe.startswith(f"{score.metric}/")


def test_the_oracle_is_the_worlds_own() -> None:
    """The same number as measuring a world gives for the same pixels; a clip that was enlarged counts as it was."""
    from p2e.world.oracle import fidelity

    truth, context = true_clip("levitation", 20), Context("", "", "levitation", "world:20")
    noise = torch.randint(-20, 20, truth.shape, generator=torch.Generator().manual_seed(0))
    video = (truth.int() + noise).clamp(0, 255).byte()
    frames = video.permute(0, 2, 3, 1).numpy()
    wanted = float(fidelity(video[None], truth[None], truth[None, 0])[0])
    assert metric("oracle").score(Clip(frames), context)[0] == pytest.approx(wanted, abs=1e-9)
    assert metric("oracle").score(Clip(frames).enlarged(3), context) == (pytest.approx(wanted, abs=1e-9), {"scale": 3})
    still = np.repeat(frames[:1] * 0 + truth[0].permute(1, 2, 0).numpy(), len(frames), 0)
    assert metric("oracle").score(Clip(still), context)[0] == pytest.approx(0, abs=1e-9)


def test_the_oracle_knows_the_world_alone(tmp_path: Path) -> None:
    clip = read_clip(CLIPS / "red_mood.mp4")
    wrong = (
        Context("", "", "red_mood", "a.png"), Context("", "", "red_mood", "world:76"),
        Context("", "", "no such effect", "world:3"),
    )  # fmt: skip
    for context in wrong:
        with pytest.raises(Unscorable, match=r"^not_the_world: "):
            metric("oracle").score(clip, context)
    with pytest.raises(Unscorable, match=r"^wrong_size: "):
        metric("oracle").score(Clip(clip.frames[:-1]), Context("", "", "red_mood", "world:3"))


@settings(max_examples=25, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(3, 9), st.integers(2, 6), st.integers(2, 6), st.just(3))))
def test_smoothness_by_its_formula(frames: np.ndarray) -> None:
    value, details = metric("blend_smoothness").score(Clip(frames), Context(""))
    kept, truth = frames[::2].astype(np.float32) / 255, frames[1::2]
    made = ((kept[:-1] + kept[1:]) / 2 * np.float32(255)).astype(np.uint8)  # cut off, not rounded
    pairs = [np.abs(a.astype(int) - b).mean() for a, b in zip(made, truth[: len(made)], strict=True)]
    assert details["pairs"] == len(pairs) == (len(frames) - 1) // 2
    assert value == pytest.approx(100 * (255 - np.mean(pairs)) / 255, abs=0.2)


def test_a_still_clip_is_smooth_and_does_not_move(tmp_path: Path) -> None:
    still = Clip(read_clip(CLIPS / "levitation.mp4").frames[:1].repeat(9, 0))
    write_mp4(tmp_path / "still.mp4", still)
    values = {
        s.metric: s.value
        for s in score_clips([metric(n) for n in PLAIN[:3]], [Item("s", str(tmp_path / "still.mp4"), Context(""))])
    }
    assert values["blend_smoothness"] is not None and values["blend_smoothness"] > 99.5
    assert values["mean_motion"] is not None and values["mean_motion"] < 0.2 and values["moving_share"] == 0


def test_a_plug_in_interpolates() -> None:
    clip = read_clip(CLIPS / "levitation.mp4")
    plugged = metric("motion_smoothness", interpolator="plug_in:blend", version="a")
    value, _ = plugged.score(clip, Context(""))
    assert value == metric("blend_smoothness").score(clip, Context(""))[0] and plugged.name == "motion_smoothness"
    assert plugged.recipe == "motion_smoothness/1 plug_in:blend a" != metric("blend_smoothness").recipe
    with pytest.raises(Unscorable, match=r"^wrong_plug_in"):
        metric("motion_smoothness", interpolator="plug_in:shrinking", version="a").score(clip, Context(""))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("beauty", {}, "no metric is named beauty; there are clip_score"), ("oracle", {"scale": 2}, "scale"),
        ("motion_smoothness", {}, "interpolator"),
        ("clip_score", {"weights": "nowhere.safetensors"}, "fetch open_clip_model"),
        ("motion_smoothness", {"interpolator": "plug_in:none", "version": ""}, "cannot be used"),
        ("motion_smoothness", {"interpolator": "nothing", "version": ""}, "cannot be used"),
        ("aesthetic", {"weights": "nowhere.safetensors", "head": "x"}, "vit_large"),
    ],
)  # fmt: skip
def test_what_cannot_be_opened_says_why(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        metric(name, **options)
    assert "\n" not in str(error.value)


def test_keys_tell_what_a_score_depends_on() -> None:
    first = Item("a", "x.mp4", Context("it melts", "a.png", "melt", "world:1"))
    others = [
        Item("b", "x.mp4", first.context), Item("a", "x.mp4", Context("it burns", "a.png", "melt", "world:1")),
        Item("a", "x.mp4", Context("it melts", "a.png", "burn", "world:1")),
    ]  # fmt: skip
    keys = {score_key(one, recipe) for one in (first, *others) for recipe in ("m/1", "m/2")}
    assert len(keys) == 8
    assert score_key(first, "m/1") == score_key(Item("a", "elsewhere.mp4", first.context), "m/1")


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400), st.integers(1, 40))
def test_frames_from_the_first_to_the_last(frames: int, count: int) -> None:
    chosen = uniform_frames(frames, count)
    assert len(chosen) == count and chosen[0] == 0 and list(chosen) == sorted(chosen)
    assert count == 1 or chosen[-1] == frames - 1
    assert frames < count or len(set(chosen)) == count
