"""Clips to scores: whatever is wrong with a clip is a line of its own, and no other clip's affair."""

from collections.abc import Sequence
from dataclasses import dataclass

from eval.metrics.base import Context, Metric, Unscorable
from eval.metrics.reading import read_clip
from eval.run_files import Score
from p2e.adapt.cache import digest_of
from p2e.errors import P2EError

__all__ = ["Item", "score_clips", "score_key"]


@dataclass(frozen=True)
class Item:
    """A clip to score: its key, its file, and what it should show."""

    clip: str
    video: str
    context: Context


def score_key(item: Item, recipe: str) -> str:
    """What a score is known by. The clip's key stands for its bytes, and for the picture it began with."""
    context = item.context
    return digest_of("score", item.clip, context.prompt, context.effect, context.scene, recipe)[:32]


def score_clips(metrics: Sequence[Metric], items: Sequence[Item]) -> list[Score]:
    """Every metric of every clip, by clip, then by metric; a clip is read once. What cannot be scored has no value but
    an error, "code: words"; an exception of no known kind has the code "internal" and its type."""
    found = []
    for item in items:
        try:
            clip, problem = read_clip(item.video), ""
        except Exception as error:  # one clip is not the sweep
            clip, problem = None, words(error)
        for metric in metrics:
            value, error, details = None, problem, {}
            if clip is not None:
                try:
                    value, details = metric.score(clip, item.context)
                    if not abs(value) < float("inf"):
                        value, error = None, f"not_finite: {metric.name} gives {value}"
                except Exception as problem_here:  # one metric is not the others
                    error = words(problem_here)
            common = {"clip": item.clip, "effect": item.context.effect, "metric": metric.name, "recipe": metric.recipe}
            found.append(Score(key=score_key(item, metric.recipe), **common, value=value, error=error, details=details))
    return found


def words(error: Exception) -> str:
    """An error as a score has it."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, Unscorable):
        return text
    return f"cannot_be_read: {text}" if isinstance(error, P2EError) else f"internal: {type(error).__name__}: {text}"
