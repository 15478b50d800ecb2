"""Scores that were measured with the whole library, for what cannot be measured from the LoRAs that ship.

A repository of bearable size holds some of the library's LoRAs. An effect whose LoRA is not there has no column "lora",
and mixtures of the library (mean, nearest, softmax) are mixtures of all of it or something else.
"""

from collections.abc import Iterable
from pathlib import Path

from p2e.errors import InputError
from p2e.world.columns import Column
from p2e.world.config import WorldMeasureConfig
from p2e.world.effects import EFFECTS, EffectSpec
from p2e.world.measurement import EffectScores, Measurement

__all__ = ["RECORD", "fill_from_record", "is_recorded", "without_lora"]

RECORD = Path(__file__).parents[1] / "results" / "world" / "main.json"
MIXTURES = ("mean", "nearest", "softmax")
SHARED = ("prompts", "steps")  # settings in which the record must agree


def without_lora(weights: Path) -> set[str]:
    """Effects whose LoRA is not in the library of a world."""
    folder = weights / "library" / "loras"
    return {spec.name for spec in EFFECTS if not (folder / f"{spec.name}.safetensors").exists()}


def is_recorded(column: str, effect: str, missing: set[str]) -> bool:
    """Whether a cell needs LoRAs that are missing."""
    parsed = Column.parse(column)
    if parsed.kind == "lora" and not parsed.trained:
        return effect in missing
    return parsed.kind in MIXTURES and any(spec.split == "train" and spec.name in missing for spec in EFFECTS)


def fill_from_record(
    found: Measurement, specs: Iterable[EffectSpec], config: WorldMeasureConfig, record: Path, missing: set[str]
) -> int:
    """Adds the cells that need missing LoRAs -> their number. Scores are those of the first scenes, means over the
    record's own seeds.

    Raises:
        InputError: the record was measured otherwise, or lacks a cell.
    """
    known, count = Measurement.load(record), 0
    for key in SHARED:
        if known.settings.get(key) != found.settings.get(key):
            raise InputError(
                f"{record}: measured with {key} {known.settings.get(key)}, not {found.settings.get(key)}; leave out "
                "the columns lora, mean, nearest and softmax"
            )
    for spec in specs:
        for column in config.columns:
            if not is_recorded(column, spec.name, missing):
                continue
            if not known.has(spec.name, column) or known.settings["scenes"] < config.scenes:
                raise InputError(f"{record}: has no {column} of {spec.name} on {config.scenes} scenes; measure fewer")
            row = found.effects.setdefault(spec.name, EffectScores(spec.split, spec.category))
            row.scores[column] = known.effects[spec.name].scores[column][: config.scenes]
            row.seeds[column] = [sum(row.scores[column]) / config.scenes] * len(config.seeds)
            count += 1
    return count
