"""Which clips of a run a report shows: effects from the best to the worst, and the worst clips."""

import math
from dataclasses import dataclass

import numpy as np

from eval.report.findings import Findings, Selection

__all__ = ["Case", "headline", "sheets", "worst"]

PREFERRED = ("judge", "oracle", "clip_score")


@dataclass(frozen=True)
class Case:
    """A cell of the run, with its headline score."""

    method: str
    effect: str
    scene: str
    value: float


def headline(findings: Findings) -> str | None:
    """The metric that tells best from worst: the judge, else the oracle, else the CLIP score, else the first one."""
    scored = [name for name in findings.metrics if np.isfinite(findings.values[name]).any()]
    return next((name for name in (*PREFERRED, *scored) if name in scored), None)


def sheets(findings: Findings, focus: str, count: int) -> list[tuple[str, str, float]]:
    """(effect, scene, headline score of the effect) of effects that lie evenly from the best of `focus` to the worst;
    the scene is the first of which most methods have a clip."""
    metric, found = headline(findings), []
    for place, effect in enumerate(findings.suite.effects):
        values = [] if metric is None else findings.per_effect(metric, focus, Selection([place]))
        value = float(values[0]) if len(values) else math.nan
        clips = [sum((m, effect.name, s.id) in findings.clips for m in findings.methods) for s in findings.suite.scenes]
        if max(clips):
            found.append((effect.name, findings.suite.scenes[clips.index(max(clips))].id, value))
    found.sort(key=lambda item: (math.isnan(item[2]), -item[2] if not math.isnan(item[2]) else 0.0))
    places = np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)
    return [found[place] for place in dict.fromkeys(places.tolist())]


def worst(findings: Findings, focus: str, count: int) -> list[Case]:
    """The clips of `focus` with the lowest headline scores, an effect once."""
    metric = headline(findings)
    if metric is None:
        return []
    values, cases = findings.values[metric][findings.methods.index(focus)], []
    for place in np.argsort(np.where(np.isfinite(values), values, np.inf), axis=None, kind="stable"):
        effect, scene = divmod(int(place), values.shape[1])
        name = findings.suite.effects[effect].name
        if not math.isfinite(values[effect, scene]) or len(cases) == count:
            break
        if all(case.effect != name for case in cases):
            cases.append(Case(focus, name, findings.suite.scenes[scene].id, float(values[effect, scene])))
    return cases
