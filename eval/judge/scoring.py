"""Verdicts as scores of a run: one row for the total, one for each criterion."""

import hashlib
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from eval.judge.base import Answer, Judge, JudgeItem
from eval.judge.rubric import RUBRIC_HASH
from eval.judge.settings import JudgeSettings
from eval.metrics.scoring import Item
from eval.run_files import Score
from p2e.adapt.cache import digest_of
from p2e.files import sha256

__all__ = ["METRICS", "judge_key", "open_judge", "score_with_judge"]

METRICS = ("judge", "judge.effect", "judge.context", "judge.temporal", "judge.hard_fail")


def open_judge(settings: JudgeSettings) -> Judge:
    """The backend that the settings name.

    Raises:
        ConfigError: it cannot be used as it is set.
    """
    if settings.backend == "local":
        from eval.judge.local_backend import LocalJudge

        return LocalJudge(settings)
    if settings.backend == "ray":
        from ray_jobs.judge import RayJudge

        return RayJudge(settings)
    from eval.judge.openai_backend import OpenAIJudge

    return OpenAIJudge(settings)


def judge_key(item: Item, metric: str, settings: JudgeSettings, image: str) -> str:
    """What a score of the judge is known by: the clip (its key stands for its bytes), the digest of the picture, what
    is asked, and the recipe with its rubric, model and sampler."""
    context = item.context
    repeats = settings.repeats if _repeated(item, settings) else 1
    return digest_of("judge", metric, item.clip, image, context.prompt, context.effect, settings.recipe, repeats)[:32]


def score_with_judge(
    judge: Judge, settings: JudgeSettings, items: Iterable[Item], known: Mapping[str, Score] | None = None
) -> Iterator[list[Score]]:
    """The five scores of each clip, as they come; an item that has them among `known`, with a value, is not asked
    for again. Without a verdict all five have no value but the reason, "code: words".

    Clips that are repeated, a share chosen by their keys and so the same in every run, carry all totals in the first
    score's details: `repeats`.
    """
    digest = cache(_digest)
    tallies: dict[str, _Tally] = {}

    def asked() -> Iterator[JudgeItem]:
        for item in items:
            image = digest(item.context.image)
            keys = [judge_key(item, metric, settings, image) for metric in METRICS]
            if keys[0] in tallies or all(key in (known or {}) and not (known or {})[key].error for key in keys):
                continue
            count = settings.repeats if _repeated(item, settings) else 1
            tallies[keys[0]] = _Tally(item, keys, [None] * count)
            context = item.context
            first = JudgeItem(
                f"{keys[0]} 0", item.clip, item.video, context.image, context.prompt, context.effect, image,
                settings.seed,
            )  # fmt: skip
            for index in range(count):
                yield replace(first, key=f"{keys[0]} {index}", seed=settings.seed + index)

    for one, answer in judge.judge(asked()):
        key, _, index = one.key.partition(" ")
        tally = tallies[key]
        tally.answers[int(index)] = answer
        if None not in tally.answers:
            yield _scores(tally, settings)
            tally.answers = []  # known from now on; its reason need not stay


@dataclass
class _Tally:
    item: Item
    keys: list[str]
    answers: list[Answer | None]


def _scores(tally: _Tally, settings: JudgeSettings) -> list[Score]:
    answers = [answer for answer in tally.answers if answer is not None]
    first = answers[0]
    details: dict[str, object] = {
        "model": settings.model, "rubric": RUBRIC_HASH, "attempts": sum(answer.attempts for answer in answers),
    }  # fmt: skip
    if first.prompt_tokens:
        details["prompt_tokens"] = first.prompt_tokens
    if len(answers) > 1:
        totals = [answer.verdict.total for answer in answers if answer.verdict is not None]
        details["repeats"] = totals
        if len(totals) > 1:
            details["repeats_std"] = statistics.stdev(totals)
    verdict = first.verdict
    values: list[float | None] = [None] * len(METRICS)
    if verdict is not None:
        values = [verdict.total, verdict.effect, verdict.context, verdict.temporal, float(verdict.hard_fail)]
        details["reason"] = verdict.reason
    common = {"clip": tally.item.clip, "effect": tally.item.context.effect, "recipe": settings.recipe}
    found = []
    for key, metric, value in zip(tally.keys, METRICS, values, strict=True):
        kept = details if metric == "judge" else {}
        found.append(Score(key=key, metric=metric, value=value, error=first.error, details=kept, **common))
    return found


def _repeated(item: Item, settings: JudgeSettings) -> bool:
    part = int(digest_of("repeat", item.clip, item.context.prompt)[:8], 16) / (1 << 32)
    return part < settings.repeat_share


def _digest(image: str | Path) -> str:
    """Of a picture's bytes; of one that cannot be read, of its name: its clip's answer says what is wrong."""
    try:
        return sha256(image)
    except (OSError, ValueError, ImportError):
        return hashlib.sha256(str(image).encode("utf-8", "replace")).hexdigest()
