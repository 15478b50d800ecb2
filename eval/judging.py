"""The judge as a sweep sees it: what it has not scored yet goes to it, its scores come back as it gives them."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eval.run_files import RunFiles, Score
from eval.sweep import Work
from p2e.errors import ConfigError

__all__ = ["judge_missing", "judge_module"]


def judge_module() -> Any:
    """`eval.judge`.

    Raises:
        ConfigError: this checkout has no judge, or a package of it is missing.
    """
    try:
        return importlib.import_module("eval.judge")
    except ModuleNotFoundError as error:
        if error.name != "eval.judge":
            raise ConfigError(f"judge: {error}; install the extra judge") from None
        raise ConfigError("judge: there is none in this checkout; leave out judge") from None


def judge_missing(
    settings: Mapping[str, Any], works: Mapping[str, Sequence[Work]], files: RunFiles, retry_errors: bool
) -> Iterator[list[Score]]:
    """Scores of the clips that the judge has not scored under its recipe, in the order of the clips.

    Args:
        works: clip key -> what it is to be judged for.
        retry_errors: those that it failed on are asked again.

    Raises:
        ConfigError: the judge cannot be had.
    """
    judge = judge_module().open_judge(settings)
    done = {
        (score.clip, score.effect)
        for score in files.scores().values()
        if score.metric == "judge" and score.recipe == judge.recipe and not (retry_errors and score.error)
    }
    left = [work.item() for own in works.values() for work in own if (work.clip, work.effect) not in done]
    if left:
        yield from judge.score_many(left)
