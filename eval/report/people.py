"""What people preferred, how far they agree, and how far each metric agrees with them.

Shapes: E effects.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from eval.preferences.agreement import cohen_kappa, krippendorff_alpha
from eval.preferences.votes import Vote, read_votes, standing
from eval.report.findings import Findings
from eval.world.statistics import Estimate, share_of

__all__ = ["Duel", "People", "Share", "people"]


@dataclass(frozen=True)
class Share:
    """A share of votes, which are of so many effects; the interval is over effects, of which each weighs as much as it
    has votes."""

    estimate: Estimate
    votes: int
    effects: int


@dataclass(frozen=True)
class Duel:
    """Votes on one pair of methods.

    Attributes:
        share: of the votes for `first`, an undecided one counting half for each.
    """

    first: str
    second: str
    wins: int
    equal: int
    bad: int
    losses: int
    share: Share


@dataclass(frozen=True)
class People:
    """All votes of a run.

    Attributes:
        raters: name -> votes.
        outdated: votes of clips that the run no longer has, which count for nothing here.
        shared: cells that two raters or more answered.
        same: of pairs of answers on one cell, the share that names the same clip, or in which neither names one.
        kappa: Cohen's, of two raters; NaN where there are others.
        alpha: Krippendorff's.
        duels: of pairs of methods, in the suite's order.
        metrics: how often each prefers the clip that a person does. It is of decided votes, those that name a better
            clip; where both are alike to the metric, that is half a hit. A coin has 0.5.
        another: the same of another rater: what a metric may be held to.
    """

    raters: dict[str, int]
    outdated: int
    shared: int
    same: float
    kappa: float
    alpha: float
    duels: tuple[Duel, ...]
    metrics: dict[str, Share]
    another: Share


def people(findings: Findings) -> People | None:
    """Reads the votes of a run; None where nobody was asked.

    Raises:
        ConfigError: a line is no vote.
    """
    found = standing(read_votes(findings.files), findings.clips)
    if not found.votes and not found.outdated:
        return None
    cells: dict[Hashable, list[Vote]] = defaultdict(list)
    raters: dict[str, int] = defaultdict(int)
    for vote in found.votes:
        cells[vote.cell].append(vote)
        raters[vote.rater] += 1
    shared = [votes for votes in cells.values() if len(votes) > 1]
    couples = [couple for votes in shared for couple in itertools.combinations(votes, 2)]
    same = [one.for_method(one.left) == two.for_method(one.left) for one, two in couples]
    return People(
        dict(raters), found.outdated, len(shared), float(np.mean(same)) if same else math.nan,
        _kappa(shared) if len(raters) == 2 else math.nan, krippendorff_alpha(_both_ways(shared)),
        tuple(_duels(findings, found.votes)),
        {metric: _share(_by_metric(findings, metric, found.votes)) for metric in findings.metrics},
        _share((one.effect, two.for_method(_winner(one)))
               for couple in couples for one, two in (couple, couple[::-1]) if _winner(one)),
    )  # fmt: skip


def _winner(vote: Vote) -> str:
    """The better method; "" where neither is."""
    return vote.left if vote.choice == "left" else vote.right if vote.choice == "right" else ""


def _both_ways(cells: Iterable[Sequence[Vote]]) -> list[list[int]]:
    """Labels 1, 0, -1 of each cell, as seen from one method and from the other: which of them is called first means
    nothing, so neither label may be the rarer one."""
    return [
        [vote.for_method(method) for vote in votes] for votes in cells for method in (votes[0].left, votes[0].right)
    ]


def _kappa(cells: Iterable[Sequence[Vote]]) -> float:
    """Of two raters."""
    labels = _both_ways(sorted(votes, key=lambda vote: vote.rater) for votes in cells)
    return cohen_kappa([one for one, _ in labels], [two for _, two in labels])


def _duels(findings: Findings, votes: Sequence[Vote]) -> Iterable[Duel]:
    for first, second in itertools.combinations(findings.methods, 2):
        own = [vote for vote in votes if {vote.left, vote.right} == {first, second}]
        if own:
            signs = [vote.for_method(first) for vote in own]
            bad = sum(vote.choice == "bad" for vote in own)
            share = _share((vote.effect, sign) for vote, sign in zip(own, signs, strict=True))
            yield Duel(first, second, signs.count(1), signs.count(0) - bad, bad, signs.count(-1), share)


def _by_metric(findings: Findings, metric: str, votes: Iterable[Vote]) -> Iterable[tuple[str, int]]:
    """Effect of each decided vote on clips that both have a score, with 1 where the metric agrees, 0 where it sees no
    difference, -1 where it prefers the other."""
    for vote in votes:
        scores = [findings.scores.get((name, vote.effect, vote.scene, metric)) for name in (vote.left, vote.right)]
        values = [score.value for score in scores if score is not None and score.value is not None]
        if _winner(vote) and len(values) == 2:
            yield vote.effect, int(np.sign(values[0] - values[1])) * vote.for_method(vote.left)


def _share(signs: Iterable[tuple[str, int]]) -> Share:
    """Of signs by effect: 1 counts 1, 0 a half, -1 nothing."""
    of_effect: dict[str, list[float]] = defaultdict(list)
    for effect, sign in signs:
        of_effect[effect].append(0.5 + sign / 2)
    sums, counts = (np.array([kind(of_effect[e]) for e in sorted(of_effect)], float) for kind in (sum, len))
    return Share(share_of(sums, counts), int(counts.sum()), len(counts))
