"""How far raters say the same, beyond what they would by chance.

Cohen, "A coefficient of agreement for nominal scales" (1960), for two raters who both rated every unit; Krippendorff,
"Computing Krippendorff's alpha-reliability" (2011), for any number, any of whom may have left units out.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

__all__ = ["cohen_kappa", "krippendorff_alpha"]


def cohen_kappa(one: Sequence[Hashable], two: Sequence[Hashable]) -> float:
    """(observed - expected) / (1 - expected) agreement of two raters' labels of the same units.

    Returns:
        1 where they say the same; 0 where no more than chance; NaN where there are no units, or where both give one and
        the same label throughout, which no chance could be told from.

    Raises:
        ValueError: of different lengths.
    """
    if len(one) != len(two):
        raise ValueError(f"{len(one)} labels and {len(two)}; give both raters' labels of the same units")
    if not one:
        return math.nan
    count = len(one)
    same = sum(a == b for a, b in zip(one, two, strict=True))
    first, second = Counter(one), Counter(two)
    chance = sum(first[label] * second[label] for label in first)  # of count^2 pairs
    return math.nan if chance == count * count else (same * count - chance) / (count * count - chance)


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float:
    """1 - observed / expected disagreement for nominal labels.

    Args:
        units: the labels that each unit got, in any order; of those with fewer than two nothing is learned.

    Returns:
        1 where all say the same; about 0 where labels fall by chance; NaN where no unit has two labels, or all are one.
    """
    totals: Counter[Hashable] = Counter()
    observed = 0.0
    for labels in units:
        if len(labels) < 2:
            continue
        counts = Counter(labels)
        totals += counts
        differ = len(labels) ** 2 - sum(count**2 for count in counts.values())  # ordered pairs of different labels
        observed += differ / (len(labels) - 1)
    whole = totals.total()
    expected = whole**2 - sum(count**2 for count in totals.values())
    return 1 - (whole - 1) * observed / expected if expected else math.nan
