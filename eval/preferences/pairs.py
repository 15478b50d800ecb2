"""Which two clips are shown together, in what order, and on which side each stands.

All of it is drawn by digests, so that it is the same whenever it is drawn. Every rater is asked about the same pairs,
since raters can be compared on common ones alone; the order and the sides are the rater's own.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from eval.run_files import ClipRow
from eval.suite import Suite
from p2e.errors import InputError

__all__ = ["Pair", "draw"]


@dataclass(frozen=True)
class Pair:
    """Two methods' clips of one effect in one scene.

    Attributes:
        prompt: the effect in words.
    """

    left: ClipRow
    right: ClipRow
    prompt: str

    @property
    def cell(self) -> tuple[str, str, frozenset[str]]:
        return self.left.effect, self.left.scene, frozenset((self.left.method, self.right.method))


def draw(
    suite: Suite, rows: Sequence[ClipRow], rater: str, *, count: int | None = None, methods: Sequence[str] = ()
) -> list[Pair]:
    """The pairs of a rater. Clips that are the same file are no pair: there is nothing to prefer.

    Args:
        count: how many; all, if left out. A larger count holds the pairs of a smaller one. They are spread evenly over
            pairs of methods, and within those over effects.
        methods: titles of those to compare with one another; all, if left out.

    Raises:
        InputError: a method is not there, or there are no two clips to compare.
    """
    titles = [method.title for method in suite.methods]
    if missing := [name for name in methods if name not in titles]:
        raise InputError(f"the run has no method {missing[0]!r}; its methods are {', '.join(titles)}")
    chosen = [title for title in titles if not methods or title in methods]
    effects = {effect.name: effect for effect in suite.effects}
    of_cell: dict[tuple[str, str], dict[str, ClipRow]] = {}
    for row in rows:
        if row.clip is not None and row.effect in effects:
            of_cell.setdefault((row.effect, row.scene), {})[row.method] = row
    found = [
        (clips[one], clips[two])
        for one, two in itertools.combinations(chosen, 2)
        for clips in of_cell.values()
        if one in clips and two in clips and clips[one].clip != clips[two].clip
    ]
    if not found:
        raise InputError("the run has no two methods with different clips of one effect in one scene; render more")
    picked = _spread(found)[:count]
    picked.sort(key=lambda pair: _digest("order", rater, *_names(pair)))
    return [_placed(pair, rater, effects[pair[0].effect].prompt) for pair in picked]


def _spread(pairs: list[tuple[ClipRow, ClipRow]]) -> list[tuple[ClipRow, ClipRow]]:
    """In an order of which every beginning is even over pairs of methods, then over effects."""
    mixed = sorted(pairs, key=lambda pair: _digest("pick", *_names(pair)))
    for key in (lambda pair: (*_names(pair)[:2], pair[0].effect), lambda pair: _names(pair)[:2]):
        seen: Counter[tuple[str, ...]] = Counter()
        turns = []
        for pair in mixed:
            turns.append(seen[key(pair)])
            seen[key(pair)] += 1
        mixed = [pair for _, pair in sorted(zip(turns, mixed, strict=True), key=lambda item: item[0])]
    return mixed


def _placed(pair: tuple[ClipRow, ClipRow], rater: str, prompt: str) -> Pair:
    left, right = pair if int(_digest("side", rater, *_names(pair)), 16) % 2 else pair[::-1]
    return Pair(left, right, prompt)


def _names(pair: tuple[ClipRow, ClipRow]) -> tuple[str, ...]:
    one, two = pair
    return (*sorted((one.method, two.method)), one.effect, one.scene)


def _digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).hexdigest()
