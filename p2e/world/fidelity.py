"""Measuring: the evaluation scenes under each column, held to the truth, the effects shared out over the workers.

Every column gets the same text, noise and scenes, so columns differ by the LoRA alone.
"""

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from p2e.errors import InputError
from p2e.files import atomic_path
from p2e.world.columns import Column, ColumnLoras, World
from p2e.world.config import WorldMeasureConfig
from p2e.world.effects import EFFECTS, EffectSpec, effect_index
from p2e.world.evaluate import EvaluationSet, decoder_cap, draw_evaluation, measure, oracle
from p2e.world.measurement import Measurement
from p2e.world.table.spec import UNSEEN

__all__ = ["chosen_effects", "measure_columns"]

STRIP_FRAMES = 6


def chosen_effects(config: WorldMeasureConfig) -> list[EffectSpec]:
    """The effects that the configuration asks for.

    Raises:
        InputError: it names one that there is not, or leaves none.
    """
    for name in (*config.only, *config.keep):
        effect_index(name)
    specs = [s for s in EFFECTS[: config.effects : config.every] if not config.only or s.name in config.only]
    if not specs:
        raise InputError("the settings effects, every and only leave no effect to measure; widen one of them")
    return specs


def measure_columns(
    config: WorldMeasureConfig, world: World, path: Path, *, at_once: int | None = None,
    on_cells: Callable[[int], None] = lambda count: None,
) -> Measurement:  # fmt: skip
    """Measures the columns of the configuration.

    Args:
        path: the measure file, to which new cells are added, written whenever a column of some effects is done. Strips
            of frames go to clips/ beside it.
        at_once: effects that are measured together, which bounds what a run that is cut off loses; None is all.
        on_cells: called with the number of (effect, column) cells that were finished.

    Returns:
        What the file holds now.

    Raises:
        InputError: a column or an effect does not exist, or the file was measured with other settings.
    """
    columns, specs, worker = [Column.parse(name) for name in config.columns], chosen_effects(config), world.worker
    shared = {"scenes": config.scenes, "seeds": list(config.seeds), "prompts": config.prompts, "steps": config.steps}
    found, loras = Measurement.open(path, shared), ColumnLoras(world, config.library)
    worker.mean(torch.zeros(1, device=worker.device))  # all have read the file before one of them writes it
    size = at_once or len(specs)
    for part in (specs[start : start + size] for start in range(0, len(specs), size)):
        left = [c for c in columns if not config.resume or not all(found.has(s.name, c.name) for s in part)]
        on_cells(len(part) * (len(columns) - len(left)))
        if not left:
            continue
        mine = part[worker.rank :: worker.size]
        data = None
        if mine:
            indices = [effect_index(spec.name) for spec in mine]
            data = draw_evaluation(indices, config.scenes, world.vae, worker.device)
            _keep(config, path.parent, mine, "truth", data.truth)
        for column in left:
            started = time.perf_counter()
            scores = _scores(config, world, loras, column, part, mine, data, path.parent)
            whole = _gathered(scores, len(part), world)
            for spec, values in zip(part, whole, strict=True):
                found.add(spec, column.name, values)
            if worker.is_first:
                found.save(path)
                _report(found, part, column.name, time.perf_counter() - started, quiet=at_once is not None)
            on_cells(len(part))
    return found


def _scores(
    config: WorldMeasureConfig, world: World, loras: ColumnLoras, column: Column, specs: Sequence[EffectSpec],
    mine: Sequence[EffectSpec], data: EvaluationSet | None, folder: Path,
) -> Tensor:  # fmt: skip
    """Fidelity of this worker's effects, [effects, seeds, scenes]."""
    prompts = (-1,) if config.prompts == "last" else tuple(range(-UNSEEN, 0))
    if column.kind in ("still", "cap"):
        if data is None:
            return torch.zeros(0, len(config.seeds), config.scenes)
        fixed = decoder_cap(data, world.vae) if column.kind == "cap" else oracle(_still(data), data.truth)
        return fixed[:, None].expand(-1, len(config.seeds), -1).cpu()
    rows = []
    for prompt in prompts:
        # All workers make LoRAs, those too that have no effect of their own: training is shared out.
        chosen = None if column.kind == "base" else loras.of(column, specs, mine, prompt)
        if data is None:
            continue
        text = torch.stack([world.states[spec.name].states[prompt] for spec in mine])
        seeds = []
        for seed in config.seeds:
            score, clips = measure(
                data, text, chosen, world.base, world.transformer, world.vae, world.scheduler, steps=config.steps,
                seed=seed,
            )  # fmt: skip
            seeds.append(score.cpu())
            if prompt == prompts[-1] and seed == config.seeds[0]:
                _keep(config, folder, mine, column.name, clips)
        rows.append(torch.stack(seeds, 1))
    return torch.stack(rows).mean(0) if rows else torch.zeros(0, len(config.seeds), config.scenes)


def _still(data: EvaluationSet) -> Tensor:
    return data.truth[:, :, :1].expand_as(data.truth)


def _gathered(scores: Tensor, count: int, world: World) -> Tensor:
    """Scores of all effects, [count, seeds, scenes], of those that each worker has of every size-th one."""
    size, share = world.worker.size, -(-count // world.worker.size)
    padded = torch.full((share, *scores.shape[1:]), torch.nan, dtype=torch.float64, device=world.worker.device)
    padded[: len(scores)] = scores.to(padded)
    whole = world.worker.gather(padded).view(size, share, *scores.shape[1:])
    return whole.transpose(0, 1).flatten(0, 1)[:count].cpu()


def _report(found: Measurement, specs: Sequence[EffectSpec], column: str, seconds: float, quiet: bool) -> None:
    if quiet:
        return
    parts = []
    for split in ("train", "heldout", "ood"):
        if names := [spec.name for spec in specs if spec.split == split]:
            parts.append(f"{split} {found.mean(names, column):.3f} ({len(names)})")
    print(f"fidelity {column}: {', '.join(parts)}, {seconds:.1f} s", flush=True)


def _keep(config: WorldMeasureConfig, folder: Path, specs: Sequence[EffectSpec], name: str, clips: Tensor) -> None:
    """Writes a strip of frames (a row a scene) of the effects whose clips [E, S, F, 3, H, W] are kept."""
    for spec, clip in zip(specs, clips, strict=True):
        if spec.name not in config.keep:
            continue
        scenes, frames = clip[: config.keep_scenes], clip.shape[1]
        shown = scenes[:, torch.linspace(0, frames - 1, min(STRIP_FRAMES, frames)).round().long()]
        strip = shown.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # [S H, F W, 3]
        with atomic_path(folder / "clips" / spec.name / f"{re.sub('[:/]', '-', name)}.png") as temporary:
            Image.fromarray(strip.contiguous().cpu().numpy()).save(temporary, format="PNG")
