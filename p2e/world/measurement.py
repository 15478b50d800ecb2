"""The measure file: fidelity of every effect under each column, scene by scene, as one JSON.

    {"settings": {...},
     "effects": {"red_mood": {"split": "train", "category": "mood",
                              "scores": {"base": [one a scene]}, "seeds": {"base": [one a seed]}}}}

`scores` are means over the seeds of the noise (and over prompts, where several were asked), `seeds` means over the
scenes, so that the spread between seeds can be told at any level. Nothing is clamped; NaN is null.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from p2e.errors import FormatError, InputError
from p2e.files import read_text, write_text
from p2e.world.effects import EffectSpec

__all__ = ["EffectScores", "Measurement"]

DIGITS = 6


@dataclass
class EffectScores:
    """One effect: column -> fidelity of each scene, and of each seed."""

    split: str
    category: str
    scores: dict[str, list[float]] = field(default_factory=dict)
    seeds: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Measurement:
    """What was measured.

    Attributes:
        settings: what all scores share: scenes, seeds, prompts, steps.
        effects: by name, in order of the table of effects.
    """

    settings: Mapping[str, Any]
    effects: dict[str, EffectScores] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> "Measurement":
        """Reads a measure file.

        Raises:
            InputError: it is missing.
            FormatError: it is not one.
        """
        try:
            values = json.loads(read_text(path))
            rows = {
                name: EffectScores(row["split"], row["category"], _numbers(row["scores"]), _numbers(row["seeds"]))
                for name, row in values["effects"].items()
            }
            return cls(dict(values["settings"]), rows)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise FormatError(f"{path}: not a measure file ({error!r}); measure again, to another file") from None

    @classmethod
    def open(cls, path: str | Path, settings: Mapping[str, Any]) -> "Measurement":
        """The file to go on with, or an empty one.

        Raises:
            InputError: the file holds scores of other settings, which do not belong in one table with new ones.
        """
        if not Path(path).exists():
            return cls(dict(settings))
        found, wanted = cls.load(path), json.loads(json.dumps(settings))
        if found.settings != wanted:
            key = next(k for k in sorted({*found.settings, *wanted}) if found.settings.get(k) != wanted.get(k))
            raise InputError(
                f"{path}: measured with {key} {found.settings.get(key)}, not {wanted.get(key)}; give another name, or "
                "remove it"
            )
        return found

    def has(self, effect: str, column: str) -> bool:
        return effect in self.effects and column in self.effects[effect].scores

    def add(self, spec: EffectSpec, column: str, scores: Tensor) -> None:
        """Puts in, or replaces, the scores [seeds, scenes] of a cell."""
        row = self.effects.setdefault(spec.name, EffectScores(spec.split, spec.category))
        row.scores[column] = [round(x, DIGITS) for x in scores.double().mean(0).tolist()]
        row.seeds[column] = [round(x, DIGITS) for x in scores.double().mean(1).tolist()]

    def mean(self, effects: Sequence[str], column: str) -> float:
        """Mean fidelity over effects, each the mean of its scenes."""
        return sum(sum(s) / len(s) for s in (self.effects[n].scores[column] for n in effects)) / len(effects)

    def save(self, path: str | Path) -> None:
        """Writes the file.

        Raises:
            OutputError: it cannot be written.
        """
        rows = []
        for name, row in self.effects.items():
            values = {"split": row.split, "category": row.category}
            values |= {k: _plain(v) for k, v in (("scores", row.scores), ("seeds", row.seeds))}
            rows.append(f"{json.dumps(name)}: {json.dumps(values)}")
        text = f'{{"settings": {json.dumps(self.settings)},\n"effects": {{\n' + ",\n".join(rows) + "\n}}\n"
        write_text(path, text)


def _numbers(columns: Mapping[str, Sequence[float | None]]) -> dict[str, list[float]]:
    return {name: [math.nan if x is None else float(x) for x in values] for name, values in columns.items()}


def _plain(columns: Mapping[str, Sequence[float]]) -> dict[str, list[float | None]]:
    return {name: [None if math.isnan(x) else x for x in values] for name, values in columns.items()}
