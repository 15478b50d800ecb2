"""Metrics as a sweep opens them: those of `eval.metrics`, and a user's own, "module:attribute".

A user's metric is made by `attribute(**options)` and is what `eval.metrics.Metric` says.
"""

import importlib
from typing import Any

from eval.metrics import Metric, open_metric
from eval.suite import MetricSettings
from p2e.errors import ConfigError, P2EError

__all__ = ["open_scorer"]


def open_scorer(settings: MetricSettings, device: str) -> Metric:
    """Opens a metric.

    Raises:
        ConfigError: there is no such metric, or its options do not fit.
    """
    if ":" not in settings.name:
        return open_metric(settings, device)
    module, _, attribute = settings.name.partition(":")
    try:
        metric: Any = getattr(importlib.import_module(module), attribute)(**settings.options)
        name, recipe = metric.name, metric.recipe
    except P2EError:
        raise
    except Exception as error:  # anything may be wrong with a plug-in
        text = " ".join(str(error).split())[:300]
        raise ConfigError(f"metric {settings.name}: cannot be opened ({type(error).__name__}: {text})") from None
    if not (isinstance(name, str) and isinstance(recipe, str) and callable(getattr(metric, "score", None))):
        raise ConfigError(f"metric {settings.name}: is no metric; see eval.metrics.Metric")
    return metric
