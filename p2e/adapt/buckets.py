"""Sizes and lengths that clips are cut to, so that a batch has one shape.

A bucket is (F, H, W): frames, height and width in pixels. Each clip goes to the bucket nearest to its own shape.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from p2e.errors import ConfigError, InputError

__all__ = ["Bucket", "Grid", "assign_bucket", "check_buckets"]

Bucket = tuple[int, int, int]

ASPECTS = (1 / 2, 9 / 16, 2 / 3, 3 / 4, 1.0, 4 / 3, 3 / 2, 16 / 9, 2.0)  # width / height
SAME = 0.05  # difference of two logarithms of aspects that count as one
PARTS = 8  # lengths that are found are whole eighths of the longest


@dataclass(frozen=True, slots=True)
class Grid:
    """What shapes a base takes, and the one it was made for.

    Attributes:
        frame_step: frames are a multiple of it plus one.
        side_step: height and width are multiples of it.
        size: (F, H, W) to stay near to: the longest length, and about as many pixels.
        only_side: the one (H, W) that the base takes, if it is so.
    """

    frame_step: int
    side_step: int
    size: Bucket
    only_side: tuple[int, int] | None = None

    def found(self, available: int, height: int, width: int) -> Bucket | None:
        """The bucket for a clip of `available` frames at the base's rate: the nearest of the usual aspects at about the
        base's pixels, the longest of its lengths; None if it is too short for any."""
        lengths = {
            1 + self.frame_step * (((self.size[0] - 1) * k // PARTS) // self.frame_step) for k in range(PARTS + 1)
        }
        fitting = [length for length in lengths if 1 < length <= available]
        if not fitting:
            return None
        if self.only_side is not None:
            return max(fitting), *self.only_side
        pixels = self.size[1] * self.size[2]
        own = width / height
        native = self.size[2] / self.size[1]
        # What nearly has the shape that the base was made for takes that, lying or upright.
        apart = [a for a in ASPECTS if min(abs(math.log(a / native)), abs(math.log(a * native))) > SAME]
        shapes = {self._shape(pixels, aspect) for aspect in (native, 1 / native, *apart)}
        nearest = min(sorted(shapes), key=lambda shape: abs(math.log(shape[1] / shape[0] / own)))
        return max(fitting), *nearest

    def _shape(self, pixels: int, aspect: float) -> tuple[int, int]:
        def rounded(side: float) -> int:
            return max(1, round(side / self.side_step)) * self.side_step

        return rounded(math.sqrt(pixels / aspect)), rounded(math.sqrt(pixels * aspect))


def check_buckets(buckets: Sequence[Bucket], grid: Grid, base: str) -> None:
    """Refuses shapes that the base does not take.

    Raises:
        ConfigError: the message says which, and the nearest that it does.
    """
    if not buckets:
        raise ConfigError("buckets: the list is empty; give (frames, height, width), or leave it out")
    for bucket in buckets:
        frames, height, width = bucket
        if frames < 1 or frames % grid.frame_step != 1 % grid.frame_step:
            near = max(0, (frames - 1) // grid.frame_step) * grid.frame_step + 1
            raise ConfigError(
                f"bucket {bucket}: {frames} frames cannot be encoded; {base} wants {grid.frame_step} n + 1, such as "
                f"{near} or {near + grid.frame_step}"
            )
        if grid.only_side is not None and (height, width) != grid.only_side:
            raise ConfigError(f"bucket {bucket}: {base} takes clips of {grid.only_side[0]} x {grid.only_side[1]} alone")
        if height < 1 or width < 1 or height % grid.side_step or width % grid.side_step:
            raise ConfigError(
                f"bucket {bucket}: {base} wants heights and widths that are multiples of {grid.side_step}"
            )


def assign_bucket(
    buckets: Sequence[Bucket] | None, grid: Grid, available: int, height: int, width: int, source: str
) -> Bucket:
    """The bucket of a clip: of those given the nearest in aspect, then the longest that it fills; else as `Grid.found`.

    Args:
        available: frames that the clip has at the base's rate.
        source: the clip's name, for the message.

    Raises:
        InputError: it is too short for every bucket.
    """
    if buckets is None:
        if (bucket := grid.found(available, height, width)) is not None:
            return bucket
        shortest = 1 + grid.frame_step
    else:
        fitting = [bucket for bucket in buckets if bucket[0] <= available]
        if fitting:
            own = width / height
            return min(fitting, key=lambda b: (abs(math.log(b[2] / b[1] / own)), -b[0], -b[1]))
        shortest = min(bucket[0] for bucket in buckets)
    raise InputError(
        f"{source}: too short, {available} frames at the base's rate where {shortest} are wanted; leave it out, or "
        "give shorter buckets"
    )
