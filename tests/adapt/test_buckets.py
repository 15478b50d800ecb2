"""Buckets: found near the base's size, chosen from a list, refused where the base does not take them; batches."""

from collections import Counter
from typing import Any

import pytest

from p2e.adapt.batches import Batches
from p2e.adapt.buckets import Grid, assign_bucket, check_buckets
from p2e.adapt.objective import shift_of
from p2e.errors import ConfigError, InputError

WAN = Grid(frame_step=4, side_step=16, size=(81, 480, 832))


@pytest.mark.parametrize(
    ("available", "height", "width", "bucket"),
    [
        (200, 480, 832, (81, 480, 832)),
        (81, 1080, 1920, (81, 480, 832)),
        (80, 1920, 1080, (69, 832, 480)),  # upright, and too short for the longest
        (50, 600, 600, (49, 624, 624)),
        (12, 720, 960, (9, 544, 736)),
    ],
)
def test_found_near_the_bases_size(available: int, height: int, width: int, bucket: tuple[int, int, int]) -> None:
    found = assign_bucket(None, WAN, available, height, width, "a.mp4")
    assert found == bucket
    check_buckets([found], WAN, "wan")
    assert abs(found[1] * found[2] / (480 * 832) - 1) < 0.1


def test_of_a_list_the_nearest_in_shape_then_the_longest() -> None:
    listed = [(81, 480, 832), (49, 480, 832), (81, 832, 480), (17, 640, 640)]
    for available, height, width, expected in (
        (100, 720, 1280, 0), (60, 720, 1280, 1), (100, 1280, 720, 2), (100, 500, 500, 3), (20, 720, 1280, 3)
    ):  # fmt: skip
        assert assign_bucket(listed, WAN, available, height, width, "a.mp4") == listed[expected]


def test_too_short_is_said_with_the_clips_name() -> None:
    for listed, wanted in ((None, 5), ([(17, 480, 832)], 17)):
        with pytest.raises(InputError, match=rf"a\.mp4: too short, 3 frames .* {wanted} are wanted"):
            assign_bucket(listed, WAN, 3, 480, 832, "a.mp4")


@pytest.mark.parametrize(
    ("buckets", "said"),
    [
        ([], "empty"),
        ([(80, 480, 832)], "4 n \\+ 1, such as 77 or 81"),
        ([(81, 480, 830)], "multiples of 16"),
        ([(81, 0, 832)], "multiples of 16"),
    ],
)
def test_shapes_that_the_base_does_not_take(buckets: list[tuple[int, int, int]], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_buckets(buckets, WAN, "wan2.1-i2v-14b")


def test_every_clip_once_an_epoch_and_one_bucket_a_batch() -> None:
    buckets = [(5, 32, 32)] * 5 + [(9, 32, 32)] * 2
    batches = Batches(buckets, 2, seed=3)
    assert batches.per_epoch == 4
    for epoch in range(3):
        met = [batches.at(4 * epoch + i) for i in range(4)]
        assert all(len(batch) == 2 and len({buckets[i] for i in batch}) == 1 for batch in met)
        counts = Counter(i for batch in met for i in batch)
        assert set(counts) == set(range(7)) and sum(counts.values()) == 8  # the odd one out fills a batch twice
    orders = {tuple(map(tuple, (batches.at(4 * epoch + i) for i in range(4)))) for epoch in range(4)}
    assert len(orders) > 1
    again = Batches(buckets, 2, seed=3)
    assert again.at(9) == batches.at(9)


def test_more_tokens_are_shifted_further_where_the_scheduler_does_so() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.ltx.pipeline_ltx_image2video import calculate_shift

    scheduler: Any = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for tokens in (256, 1000, 4096):
        scheduler.set_timesteps(sigmas=[0.5], mu=calculate_shift(tokens))
        shift = shift_of(scheduler.config, tokens)
        assert scheduler.sigmas[0].item() == pytest.approx(shift * 0.5 / (1 + (shift - 1) * 0.5), rel=1e-5)
    assert shift_of({"flow_shift": 5.0}, 10) == 5.0
    assert shift_of({"shift": 7.0}, 10) == 7.0
