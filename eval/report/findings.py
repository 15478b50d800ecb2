"""What a run found, as arrays.

Shapes: M methods, E effects, S scenes of the suite, in its order.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.run_files import ClipRow, RunFiles, Score, by_cell
from eval.suite import Suite
from eval.world.statistics import Array
from p2e.errors import InputError

__all__ = ["Coverage", "Findings", "Selection"]

JUDGE = ("judge", "judge.effect", "judge.context", "judge.temporal")
THRESHOLD = 0.95  # share of clips that must have a score before their mean is worth a line


@dataclass(frozen=True)
class Coverage:
    """Of `total` clips, how many have a score, how many failed by code, and how many nobody has looked at."""

    total: int
    scored: int
    errors: Mapping[str, int]

    @property
    def missing(self) -> int:
        return self.total - self.scored - sum(self.errors.values())

    @property
    def share(self) -> float:
        return self.scored / self.total if self.total else 0.0


@dataclass(frozen=True)
class Selection:
    """Some effects and scenes, by their places in the suite; None is all."""

    effects: Sequence[int] | None = None
    scenes: Sequence[int] | None = None


@dataclass(frozen=True)
class Findings:
    """A run.

    Attributes:
        values: metric -> [M, E, S], NaN where there is no score.
        codes: metric -> [M, E, S], why there is none; "" where there is one, or where nobody has looked.
        clips: (method, effect, scene) -> its row.
        scores: (method, effect, scene, metric) -> its score.
    """

    files: RunFiles
    suite: Suite
    values: Mapping[str, Array]
    codes: Mapping[str, NDArray[np.object_]]
    clips: Mapping[tuple[str, str, str], ClipRow]
    scores: Mapping[tuple[str, str, str, str], Score]

    @classmethod
    def of(cls, folder: object) -> "Findings":
        """Reads a run's folder.

        Raises:
            InputError: it is no run's, or nothing was rendered yet.
        """
        files = RunFiles.of(folder)
        suite, rows = files.suite, files.clips()
        if not rows:
            raise InputError(f"{files.folder}: no clips.jsonl with clips in it yet; let the sweep go on first")
        scores = by_cell(rows, files.scores())
        named = [metric.name for metric in suite.metrics]
        named += [name for name in JUDGE if any(cell[3] == name for cell in scores) and name not in named]
        places = [
            {name: place for place, name in enumerate(names)}
            for names in (
                [method.title for method in suite.methods], [effect.name for effect in suite.effects],
                [scene.id for scene in suite.scenes],
            )
        ]  # fmt: skip
        shape = [len(place) for place in places]
        values = {name: np.full(shape, np.nan) for name in named}
        codes = {name: np.full(shape, "", object) for name in named}
        clips = {}
        for row in rows:
            cell = (row.method, row.effect, row.scene)
            if not all(name in place for name, place in zip(cell, places, strict=True)):
                raise InputError(
                    f"{files.folder}: clips.jsonl and suite.json are of different runs; run the sweep again"
                )
            clips[cell] = row
            at = tuple(place[name] for name, place in zip(cell, places, strict=True))
            for name in named:
                score = scores.get((*cell, name))
                if row.clip is None:
                    codes[name][at] = "not_rendered"
                elif score is not None and score.value is None:
                    codes[name][at] = score.error.partition(":")[0] or "unknown"
                elif score is not None:
                    values[name][at] = score.value
        return cls(files, suite, values, codes, clips, scores)

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(self.values)

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(method.title for method in self.suite.methods)

    @property
    def threshold(self) -> float:
        """The least coverage of a figure."""
        return float((self.suite.judge or {}).get("coverage", THRESHOLD))

    def splits(self) -> dict[str, list[int]]:
        """Split -> places of its effects, in the order of the paper's tables."""
        found = {
            split: [place for place, effect in enumerate(self.suite.effects) if effect.split == split]
            for split in ("train", "heldout", "ood")
        }
        return {split: places for split, places in found.items() if places}

    def cells(self, metric: str, method: str, chosen: Selection = Selection()) -> Array:
        """[E', S'] of the selection."""
        return _part(self.values[metric][self.methods.index(method)], chosen)

    def per_effect(self, metric: str, method: str, chosen: Selection = Selection()) -> Array:
        """Mean over the scenes that have a score, of each effect that has any."""
        return _means(self.cells(metric, method, chosen))

    def differences(self, metric: str, method: str, other: str, chosen: Selection = Selection()) -> Array:
        """Of each effect, the mean over scenes that both have of method - other."""
        return _means(self.cells(metric, method, chosen) - self.cells(metric, other, chosen))

    def coverage(self, metric: str, methods: Sequence[str] | None = None, chosen: Selection = Selection()) -> Coverage:
        """Of the clips of some methods."""
        total, scored, errors = 0, 0, Counter[str]()
        for method in methods or self.methods:
            values = self.cells(metric, method, chosen)
            total, scored = total + values.size, scored + int(np.isfinite(values).sum())
            errors.update(code for code in _part(self.codes[metric][self.methods.index(method)], chosen).flat if code)
        return Coverage(total, scored, dict(sorted(errors.items())))


def _part(values: NDArray, chosen: Selection) -> NDArray:
    values = values if chosen.effects is None else values[list(chosen.effects)]
    return values if chosen.scenes is None else values[:, list(chosen.scenes)]


def _means(cells: Array) -> Array:
    """Means over scenes [E', S'] -> [E''], without the effects that have no score."""
    some = np.isfinite(cells).any(1)
    return np.nanmean(cells[some], 1) if some.any() else np.zeros(0)
