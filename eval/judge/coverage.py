"""How many clips have a verdict, and the headline that is given only where enough have."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from eval.run_files import Score

__all__ = ["Coverage", "coverage", "headline"]


@dataclass(frozen=True)
class Coverage:
    """Attributes:
    ok, total: clips with a verdict, and all; errors: how many have none, by code.
    """

    ok: int
    total: int
    errors: dict[str, int]

    @property
    def share(self) -> float:
        return self.ok / self.total if self.total else 0.0

    def __str__(self) -> str:
        said = ", ".join(f"{count} {code}" for code, count in self.errors.items())
        return f"{self.ok} of {self.total} clips" + (f" ({said})" if said else "")


def coverage(scores: Iterable[Score], metric: str = "judge", expected: int | None = None) -> Coverage:
    """Of one metric.

    Args:
        expected: clips that there should be; those without any score are missing too.
    """
    mine = [score for score in scores if score.metric == metric]
    codes = Counter(score.error.partition(":")[0] for score in mine if score.value is None)
    total = max(len(mine), expected or 0)
    if absent := total - len(mine):
        codes["not_judged"] += absent
    return Coverage(sum(score.value is not None for score in mine), total, dict(sorted(codes.items())))


def headline(
    scores: Iterable[Score], threshold: float, metric: str = "judge", expected: int | None = None
) -> float | None:
    """The mean, or None below `threshold`: what is missing is seldom missing by chance."""
    listed = list(scores)
    found = coverage(listed, metric, expected)
    values = [score.value for score in listed if score.metric == metric and score.value is not None]
    return sum(values) / len(values) if values and found.share >= threshold else None
