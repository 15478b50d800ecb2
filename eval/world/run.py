"""The main table from a world's weights, on whatever machine there is: a few effects in minutes, or all of them."""

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar

from eval.world.record import RECORD, Missing, fill_from_record
from p2e.bases import world_base_folder
from p2e.bases.wan import WAN_BASES
from p2e.errors import InputError
from p2e.files import sha256
from p2e.world.columns import Column, World, other_effect
from p2e.world.config import WorldMeasureConfig
from p2e.world.effects import EFFECTS, EffectSpec, effect_index
from p2e.world.fidelity import measure_columns
from p2e.world.makers import open_transformer, open_vae
from p2e.world.measurement import Measurement
from p2e.world.parallel import join
from p2e.world.states import kept_effect_states

__all__ = ["FULL", "SUBSET", "Plan", "open_world", "pick_effects", "plan", "recompute", "shipped_effects"]

SUBSET = ("cap", "base", "mean", "nearest", "random", "zero", "lora")
FULL = ("still", "cap", "base", "hdb", "mean", "nearest", "softmax", "random", "zero", "init:50", "init:100",
        "lora:100", "lora")  # fmt: skip
# Seconds on 2 cores of an AMD EPYC that had other work too: a clip drawn and encoded, and rendered in 10 steps; 48
# clips drawn and encoded to train on; a training step of 4 clips; the LoRAs of a column for one effect.
CLIP, RENDER, CLIPS, STEP, LORA = 0.4, 2.5, 15.0, 0.8, 1.5


@dataclass(frozen=True)
class Plan:
    """What will be measured.

    Attributes:
        weights: folder of the world: base/, library/, checkpoint/.
        path: the measure file; it is named by weights and settings, so that no two kinds of scores meet in one.
        record: scores of the whole library, for cells that need LoRAs which are not there; None without one.
    """

    weights: Path
    path: Path
    config: WorldMeasureConfig
    record: Path | None = None

    @cached_property
    def missing(self) -> Missing:
        """What the record stands in for."""
        return Missing.of(self.weights) if self.record else Missing()

    @property
    def recorded(self) -> int:
        """Cells that come from the record."""
        return sum(self.missing.needed(c, name) for name in self.config.only for c in self.config.columns)

    @property
    def effects(self) -> list[EffectSpec]:
        return [EFFECTS[effect_index(name)] for name in self.config.only]

    def done(self) -> int:
        """Cells that stand in the file already."""
        if not self.path.exists():
            return 0
        found = Measurement.load(self.path)
        return sum(found.has(name, column) for name in self.config.only for column in self.config.columns)

    @property
    def cells(self) -> int:
        return len(self.config.only) * len(self.config.columns)

    def seconds(self) -> float:
        """About how long what is left takes on 2 cores."""
        found = Measurement.load(self.path) if self.path.exists() else Measurement({})
        clips, total = self.config.scenes * len(self.config.seeds), 0.0
        for name in self.config.only:
            left = [
                Column.parse(c)
                for c in self.config.columns
                if not found.has(name, c) and not self.missing.needed(c, name)
            ]
            total += CLIP * self.config.scenes if left else 0
            for column in left:
                rendered = column.kind not in ("still", "cap")
                total += clips * RENDER + LORA if rendered else 0
                total += CLIPS + column.steps * STEP if column.trained else 0
        return total


def shipped_effects(weights: Path) -> list[EffectSpec]:
    """The effects whose LoRA is there.

    Raises:
        InputError: there is none.
    """
    found = [s for s in EFFECTS if (weights / "library" / "loras" / f"{s.name}.safetensors").exists()]
    if not found:
        raise InputError(f"{weights}: has no library/loras/*.safetensors; give the folder of a world, or none")
    return found


class InSplit(Protocol):
    """An effect of the world, or of a suite."""

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...


E = TypeVar("E", bound=InSplit)


def pick_effects(specs: Sequence[E], count: int) -> list[E]:
    """`count` of the effects, as many of each split where it has them, evenly spaced over its part of the table."""
    groups = {s: [spec for spec in specs if spec.split == s] for s in ("train", "heldout", "ood")}
    groups = {split: group for split, group in groups.items() if group}
    shares = dict.fromkeys(groups, 0)
    while sum(shares.values()) < min(count, len(specs)):
        split = min((s for s in groups if shares[s] < len(groups[s])), key=lambda s: shares[s])
        shares[split] += 1
    chosen = {g[i * len(g) // n].name for s, g in groups.items() for n in [shares[s]] for i in range(n)}
    return [spec for spec in specs if spec.name in chosen]


def plan(
    weights: Path | None, out: Path, *, full: bool = False, effects: int | None = None, scenes: int | None = None,
    seeds: Sequence[int] = (0,), columns: Sequence[str] = (),
) -> Plan:  # fmt: skip
    """Settles what will be measured.

    Args:
        weights: folder of a world; None is the shipped one.
        out: where results are kept.
        effects, scenes, columns: other than those of the subset or of the whole.

    Raises:
        InputError: there are no weights, or no such column.
    """
    folder = weights or world_base_folder().parent
    if not (folder / "base" / "transformer").is_dir():
        raise InputError(f"{folder}: has no base/transformer; give the folder of a world, or leave out --weights")
    specs, record = shipped_effects(folder), RECORD if weights is None and RECORD.exists() else None
    if record is not None:
        known = Measurement.load(record).effects
        specs = [spec for spec in EFFECTS if spec in specs or spec.name in known]
    if not full or effects is not None:
        specs = pick_effects(specs, effects or 6)
    wanted = tuple(columns) or (FULL if full else SUBSET)
    parsed = [Column.parse(name) for name in wanted]
    if not columns:  # a world need not have every checkpoint
        have = recorded_columns(record)
        wanted = tuple(
            c.name
            for c in parsed
            if not c.checkpoint or c.name in have or (folder / c.checkpoint / "config.json").exists()
        )
    config = WorldMeasureConfig(
        columns=wanted, scenes=scenes or (8 if full else 1), seeds=tuple(seeds), only=tuple(s.name for s in specs),
        resume=True,
    )  # fmt: skip
    text = f"{digest(folder)} {config.scenes} {config.seeds} {config.prompts} {config.steps}"
    name = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Plan(folder, out / f"measure-{name}.json", config, record)


def recorded_columns(record: Path | None) -> set[str]:
    """The columns of the record."""
    if record is None:
        return set()
    return {column for row in Measurement.load(record).effects.values() for column in row.scores}


def digest(weights: Path) -> str:
    """One digest of all weights of a world."""
    files = sorted(p for p in weights.rglob("*.safetensors") if p.is_file())
    lines = [f"{path.relative_to(weights)} {sha256(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def open_world(weights: Path, effects: Iterable[str], text: Path) -> World:
    """A world's models and library, with the token states of some effects' prompts.

    Args:
        text: where token states are kept, or encoded to.
    """
    from diffusers import UniPCMultistepScheduler

    worker, names = join(), set(effects)
    states = kept_effect_states([spec for spec in EFFECTS if spec.name in names], text)
    transformer, vae = open_transformer(weights, worker.device), open_vae(weights, worker.device)
    scheduler = UniPCMultistepScheduler.from_pretrained(weights / "base" / "scheduler")
    return World(weights, WAN_BASES["world"], transformer, vae, scheduler, states, worker)


def recompute(plan: Plan, on_cells: Callable[[int], None] = lambda count: None) -> tuple[Measurement, float]:
    """Measures what is left of a plan -> the whole measurement, and the seconds it took. What is finished is kept, a
    cell (an effect under a column) at a time, so that a run that is cut off goes on from there."""
    started = time.perf_counter()
    if plan.done() == plan.cells:
        on_cells(plan.cells)
        return Measurement.load(plan.path), time.perf_counter() - started
    if plan.record is not None:
        config = plan.config
        shared = {"scenes": config.scenes, "seeds": list(config.seeds), "prompts": config.prompts}
        found = Measurement.open(plan.path, shared | {"steps": config.steps})
        if fill_from_record(found, plan.effects, config, plan.record, plan.missing):
            found.save(plan.path)
    names = {n for spec in plan.effects for n in (spec.name, other_effect(spec.name))}
    names |= {spec.name for spec in shipped_effects(plan.weights) if spec.split == "train"}
    world = open_world(plan.weights, names, plan.path.parent / "text")
    found = measure_columns(plan.config, world, plan.path, at_once=1, on_cells=on_cells)
    return found, time.perf_counter() - started
