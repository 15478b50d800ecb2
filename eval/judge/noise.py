"""What the judge's own dice are worth, from the clips that it was asked about several times."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from eval.run_files import Score

__all__ = ["Noise", "noise"]


@dataclass(frozen=True)
class Noise:
    """Attributes:
    std: of a single total, points, pooled over clips; clips: with at least two verdicts; answers: of those clips.
    """

    std: float
    clips: int
    answers: int


def noise(scores: Iterable[Score]) -> Noise | None:
    """sqrt(sum of squares within clips / degrees of freedom); None where no clip was judged twice."""
    squares = freedom = clips = answers = 0
    for score in scores:
        totals = score.details.get("repeats", ()) if score.metric == "judge" else ()
        if len(totals) < 2:
            continue
        mean = sum(totals) / len(totals)
        squares += sum((total - mean) ** 2 for total in totals)
        freedom += len(totals) - 1
        clips, answers = clips + 1, answers + len(totals)
    return Noise(math.sqrt(squares / freedom), clips, answers) if clips else None
