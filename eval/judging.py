"""The judge as a sweep sees it: what it has not scored yet goes to it, its scores come back as it gives them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eval.judge import JudgeSettings, open_judge, score_with_judge
from eval.run_files import RunFiles, Score
from eval.sweep import Work

__all__ = ["judge_missing", "judge_of"]


def judge_of(settings: Mapping[str, Any]) -> tuple[Any, JudgeSettings]:
    """The judge that a suite's settings name.

    Raises:
        ConfigError: there is none, or it cannot be used as it is set.
    """
    parsed = JudgeSettings.parse(dict(settings), "judge")
    return open_judge(parsed), parsed


def judge_missing(
    settings: Mapping[str, Any], works: Mapping[str, Sequence[Work]], files: RunFiles, retry_errors: bool
) -> Iterator[list[Score]]:
    """Scores of the clips that the judge has not scored under its recipe, as it gives them.

    Args:
        works: clip key -> what it is to be judged for.
        retry_errors: those that it failed on are asked again.

    Raises:
        ConfigError: the judge cannot be had.
    """
    judge, parsed = judge_of(settings)
    known = files.scores()
    if not retry_errors:  # what failed counts as known
        known = {key: score.model_copy(update={"error": ""}) for key, score in known.items()}
    yield from score_with_judge(judge, parsed, [work.item() for own in works.values() for work in own], known)
