"""Scores that were measured with everything, for what cannot be measured from the weights that ship.

A repository of bearable size holds some of the LoRAs of the library and one checkpoint. An effect whose LoRA is not
there has no column "lora", mixtures of the library (mean, nearest, softmax) are mixtures of all of it or something
else, and a column of another checkpoint, such as "hdb" of the baseline, needs that.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from p2e.errors import InputError
from p2e.world.columns import Column
from p2e.world.config import WorldMeasureConfig
from p2e.world.effects import EFFECTS, EffectSpec
from p2e.world.measurement import EffectScores, Measurement

__all__ = ["RECORD", "Missing", "fill_from_record"]

RECORD = Path(__file__).parents[1] / "results" / "world" / "main.json"
MIXTURES = ("mean", "nearest", "softmax")
SHARED = ("prompts", "steps")  # settings in which the record must agree


@dataclass(frozen=True)
class Missing:
    """What a world's folder lacks.

    Attributes:
        loras: effects whose LoRA is not in its library.
        weights: the folder; None lacks no checkpoint.
    """

    loras: frozenset[str] = frozenset()
    weights: Path | None = None

    @classmethod
    def of(cls, weights: Path) -> "Missing":
        folder = weights / "library" / "loras"
        return cls(frozenset(s.name for s in EFFECTS if not (folder / f"{s.name}.safetensors").exists()), weights)

    def needed(self, column: str, effect: str) -> bool:
        """Whether a cell needs something that is missing."""
        parsed = Column.parse(column)
        if parsed.checkpoint and self.weights is not None:
            return not (self.weights / parsed.checkpoint / "config.json").exists()
        if parsed.kind == "lora" and not parsed.trained:
            return effect in self.loras
        return parsed.kind in MIXTURES and any(s.split == "train" and s.name in self.loras for s in EFFECTS)


def fill_from_record(
    found: Measurement, specs: Iterable[EffectSpec], config: WorldMeasureConfig, record: Path, missing: Missing
) -> int:
    """Adds the cells that need what is missing -> their number. Scores are those of the first scenes, means over the
    record's own seeds.

    Raises:
        InputError: the record was measured otherwise, or lacks a cell.
    """
    known, count = Measurement.load(record), 0
    for key in SHARED:
        if known.settings.get(key) != found.settings.get(key):
            raise InputError(
                f"{record}: measured with {key} {known.settings.get(key)}, not {found.settings.get(key)}; leave out "
                "the columns lora, mean, nearest, softmax and hdb"
            )
    for spec in specs:
        for column in config.columns:
            if not missing.needed(column, spec.name):
                continue
            if not known.has(spec.name, column) or known.settings["scenes"] < config.scenes:
                raise InputError(f"{record}: has no {column} of {spec.name} on {config.scenes} scenes; measure fewer")
            row = found.effects.setdefault(spec.name, EffectScores(spec.split, spec.category))
            row.scores[column] = known.effects[spec.name].scores[column][: config.scenes]
            row.seeds[column] = [sum(row.scores[column]) / config.scenes] * len(config.seeds)
            count += 1
    return count
