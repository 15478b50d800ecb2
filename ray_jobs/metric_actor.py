"""The actor that scores clips as they come from the renderers: the metrics of a sweep, each opened once."""

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

from eval.metrics import Metric, score_clips, score_key
from eval.run_files import Score
from eval.scoring import open_scorer
from eval.suite import MetricSettings
from eval.sweep import Work
from p2e.errors import InputError
from ray_jobs.attempts import Attempts
from ray_jobs.session import failure

__all__ = ["MetricActor", "read_recipes"]


def read_recipes(metrics: Sequence[MetricSettings], device: str) -> list[tuple[str, str]]:
    """Name and recipe of each metric; opening them finds out what is wrong with them before anything is rendered.

    Raises:
        ConfigError: a metric cannot be had.
    """
    from p2e.commands.options import quiet_libraries

    quiet_libraries()
    opened = [open_scorer(settings, device) for settings in metrics]
    return [(metric.name, metric.recipe) for metric in opened]


class MetricActor:
    """Scores the clip of each line.

    Args:
        metrics: settings, in order.
        recipes: name and recipe of each, as `read_recipes` found them.
        gpu: run on a GPU.
        attempts: ends a clip that kills its actor again and again.
    """

    def __init__(
        self, metrics: Sequence[MetricSettings], recipes: Sequence[tuple[str, str]], gpu: bool, attempts: Attempts
    ) -> None:  # fmt: skip
        from p2e.commands.options import quiet_libraries

        quiet_libraries()
        self.attempts, self.recipes = attempts, dict(recipes)
        self.metrics: dict[str, Metric] = {}
        self.problems: dict[str, str] = {}
        for settings, (name, _) in zip(metrics, recipes, strict=True):
            try:
                self.metrics[name] = open_scorer(settings, "cuda" if gpu else "cpu")
            except Exception as error:  # an actor that cannot start would be started again and again
                self.problems[name] = f"cannot_be_opened: {failure(error)}"

    def __call__(self, line: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One line {key, error, seconds, actor, scores, scoring_seconds, scorer} for a renderer's line {.., carry}.

        `carry` is JSON of a list of `Work`, `scores` JSON of a list of `Score`.
        """
        start, scores = time.monotonic(), []
        if not line["error"] and line["carry"]:
            works = [Work.parse(value) for value in json.loads(line["carry"])]
            problem = self._begin(str(line["key"]))
            scores = [score for work in works for score in self._scores(work, problem)]
        said = json.dumps([score.model_dump(mode="json") for score in scores])
        return [
            {
                "key": line["key"], "error": line["error"], "seconds": line["seconds"], "actor": line["actor"],
                "scores": said, "scoring_seconds": time.monotonic() - start,
                "scorer": f"{platform.node()}:{os.getpid()}",
            }
        ]  # fmt: skip

    def _begin(self, key: str) -> str:
        try:
            self.attempts.begin(f"score-{key}")
        except InputError as error:
            return f"worker_died: {error}"
        return ""

    def _scores(self, work: Work, problem: str) -> list[Score]:
        """One of each metric that is asked for."""
        item, scores = work.item(), []
        bad = {name: problem or self.problems.get(name, "") for name in work.metrics}
        for name, error in bad.items():
            if error:
                recipe = self.recipes[name]
                scores.append(
                    Score(
                        key=score_key(item, recipe), clip=work.clip, effect=work.effect, metric=name, recipe=recipe,
                        error=error,
                    )
                )  # fmt: skip
        return scores + score_clips([self.metrics[name] for name, error in bad.items() if not error], [item])
