"""Metrics by name."""

from collections.abc import Mapping
from typing import Any

from eval.metrics.aesthetic import Aesthetic, AestheticSettings
from eval.metrics.base import Metric
from eval.metrics.clip_score import ClipScore, ClipScoreSettings
from eval.metrics.first_frame import FirstFrame
from eval.metrics.motion import MeanMotion, MovingShare
from eval.metrics.oracle import Oracle
from eval.metrics.smoothness import BlendSmoothness, MotionSmoothness, MotionSmoothnessSettings
from eval.suite import MetricSettings
from p2e.config import Settings
from p2e.errors import ConfigError

__all__ = ["METRICS", "open_metric"]


class NoSettings(Settings):
    """There are none."""


METRICS: Mapping[str, tuple[type[Settings], Any]] = {
    "clip_score": (ClipScoreSettings, ClipScore), "aesthetic": (AestheticSettings, Aesthetic),
    "motion_smoothness": (MotionSmoothnessSettings, MotionSmoothness),
    "blend_smoothness": (NoSettings, BlendSmoothness), "mean_motion": (NoSettings, MeanMotion),
    "moving_share": (NoSettings, MovingShare), "first_frame": (NoSettings, FirstFrame), "oracle": (NoSettings, Oracle),
}  # fmt: skip


def open_metric(settings: MetricSettings, device: str = "cpu") -> Metric:
    """A metric, its weights loaded.

    Raises:
        ConfigError: there is none of that name, it has no such option, or its weights cannot be used.
    """
    if settings.name not in METRICS:
        raise ConfigError(f"no metric is named {settings.name}; there are {', '.join(METRICS)}")
    kind, make = METRICS[settings.name]
    return make(kind.parse(settings.options, f"metric {settings.name}"), device)
