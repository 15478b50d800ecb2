"""What people prefer, as words and figures of a report."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from eval.report.people import People, Share

__all__ = ["Sheet", "people_figures", "people_sheets"]


@dataclass(frozen=True)
class Sheet:
    """A table of texts, which are not yet escaped.

    Attributes:
        notes: sentences before it.
    """

    title: str
    notes: tuple[str, ...]
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def people_sheets(found: People | None, title_of: Callable[[str], str]) -> list[Sheet]:
    """What people prefer, and how far metrics agree with them; nothing where nobody was asked.

    Args:
        title_of: a metric's title.
    """
    if found is None:
        return []
    duels = tuple(
        (f"{duel.first} / {duel.second}", *map(str, (duel.wins, duel.losses, duel.equal, duel.bad)),
         _with_interval(duel.share))
        for duel in found.duels
    )  # fmt: skip
    rows = [(title_of(metric), share) for metric, share in found.metrics.items()]
    agreeing = tuple(
        (name, _with_interval(share), str(share.votes), str(share.effects))
        for name, share in (("another person", found.another), *rows)
        if share.votes
    )
    sheets = [
        Sheet(
            "What people prefer", tuple(_notes(found)),
            ("first / second", "first better", "second better", "equal", "both bad", "for the first"), duels,
        ),
        Sheet(
            "Agreement with people",
            ("Of votes that name a better clip, how often each names the same one; no difference is half a hit, and a "
             "coin has 50%.",),
            ("of", "same clip", "votes", "effects"), agreeing,
        ),
    ]  # fmt: skip
    return [sheet for sheet in sheets if sheet.rows or sheet.title == "What people prefer"]


def people_figures(found: People | None) -> Iterator[tuple[str, str, str, Share]]:
    """(kind, method, metric, figure) of each."""
    if found is not None:
        for duel in found.duels:
            yield "preference", duel.first, f"over {duel.second}", duel.share
        yield "agreement", "", "another person", found.another
        for metric, share in found.metrics.items():
            yield "agreement", "", metric, share


def _notes(found: People) -> Iterator[str]:
    names = ", ".join(f"{name} {votes}" for name, votes in found.raters.items())
    yield f"{_count(len(found.raters), 'rater')}, {_count(sum(found.raters.values()), 'vote')}" + (
        f" ({names}); an undecided one counts half for each. 95% intervals over effects." if names else "."
    )
    if found.shared:
        measures = [f"the same answer in {found.same:.0%}"]
        measures += [f"Cohen's kappa {found.kappa:.2f}"] if not math.isnan(found.kappa) else []
        measures += [f"Krippendorff's alpha {found.alpha:.2f}"] if not math.isnan(found.alpha) else []
        yield f"{_count(found.shared, 'pair')} of clips had more than one rater: {', '.join(measures)}."
    if found.outdated:
        yield f"{_count(found.outdated, 'vote')} of clips that the run no longer has left out."


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _with_interval(share: Share) -> str:
    value = share.estimate
    spread = "" if math.isnan(value.low) else f" ({value.low:.0%} to {value.high:.0%})"
    return f"{value.value:.0%}{spread}"
