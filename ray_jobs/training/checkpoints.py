"""Checkpoints of a run on many workers: whole or not there, and loadable after a change of their number.

config.json, sites.json, model.safetensors   what inference reads (`p2e.hypernet.checkpoint`)
zero/*.pt                                    every worker's shard, DeepSpeed's own (pickles: from trusted storage only)
average/RANK.safetensors                     its part of the moving average
checkpoint.json                              step, settings, workers, and size and digest of every other file

Every worker writes its files into a folder of its own, and Ray Train merges and uploads them while training goes on; it
lists a checkpoint once all have arrived. `checkpoint.json` shows whether they still are what was written.
"""

import hashlib
import json
import logging
import tempfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from p2e.errors import ConfigError, InputError
from p2e.files import SafetensorsFile, read_text, sha256, write_safetensors, write_text
from p2e.training.setup import Run
from p2e.training.state import check_same
from ray_jobs.training.config import ZeroConfig
from ray_jobs.training.engine import Engine

__all__ = ["MANIFEST", "Saved", "damage", "find", "load", "save"]

MANIFEST, TAG = "checkpoint.json", "zero"
FORMAT = "p2e-ray-1"
log = logging.getLogger(__name__)


def save(engine: Engine, step: int, scratch: str | None) -> tuple[Path, torch.nn.Module | None]:
    """Writes this worker's part of a checkpoint -> its folder; and the whole network, on the first worker.

    Raises:
        OSError: the scratch folder is full, or cannot be written.
    """
    folder = Path(tempfile.mkdtemp(prefix="p2e-checkpoint-", dir=scratch))
    engine.engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)
    if engine.average is not None:
        parts = {str(i): part for i, part in enumerate(engine.average)}
        write_safetensors(folder / "average" / f"{engine.rank}.safetensors", parts)
    model = engine.whole()
    if model is not None:
        engine.run.save(folder, model, step)
    files = {str(path.relative_to(folder)): describe(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    gathered: list[Any] = [None] * engine.slots.world
    torch.distributed.all_gather_object(gathered, files)
    if engine.rank == 0:
        everything = {name: entry for part in gathered for name, entry in part.items()}
        manifest = {
            "format": FORMAT, "step": step, "world": engine.slots.world, "zero": engine.zero.model_dump(mode="json"),
            "settings": settings(engine.run), "files": everything,
        }  # fmt: skip
        write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return folder, model


def settings(run: Run) -> dict[str, Any]:
    return {"config": run.config.model_dump(mode="json"), **run.hashes}


def describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None where it is whole."""
    try:
        manifest = json.loads(read_text(folder / MANIFEST))
        files: Mapping[str, Any] = manifest["files"]
        if manifest["format"] != FORMAT:
            return f"{MANIFEST} is of another format, {manifest['format']}"
    except (InputError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is missing or not valid"
    for name, entry in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != entry["bytes"]:
            return f"{name} is missing" if size is None else f"{name} has {size} bytes instead of {entry['bytes']}"
    return next((f"{n} is corrupt" for n, entry in files.items() if sha256(folder / n) != entry["sha256"]), None)


class Saved:
    """A whole checkpoint in a folder that this node reads.

    Attributes:
        step: optimizer steps that it has seen.
        world: number of workers that wrote it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = json.loads(read_text(folder / MANIFEST))
        self.step: int = self.manifest["step"]
        self.world: int = self.manifest["world"]

    def check(self, run: Run, zero: ZeroConfig) -> None:
        """Refuses a checkpoint of another run.

        Raises:
            ConfigError: settings, base, library or ZeRO stage differ; the message says which.
        """
        check_same(self.folder / MANIFEST, self.manifest["settings"], settings(run))
        if self.manifest["zero"]["stage"] != zero.stage:
            stage = self.manifest["zero"]["stage"]
            raise ConfigError(
                f"{self.folder}: was written with zero.stage {stage}; set it back, or choose another output"
            )

    def stamp(self) -> str:
        return hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]


def find(reported: list[Any], rank: int) -> Any:
    """The newest whole checkpoint among those that Ray Train lists, or None; damaged ones are named and left out.

    All workers must call it: they agree on one.
    """
    from ray.train.collective import broadcast_from_rank_zero

    chosen = -1
    if rank == 0:
        for place in reversed(range(len(reported))):
            with reported[place].checkpoint.as_directory() as folder:
                fault = damage(Path(folder))
            if fault is None:
                chosen = place
                break
            log.warning("checkpoint %s: %s; going on from the one before", reported[place].checkpoint.path, fault)
    chosen = broadcast_from_rank_zero([chosen])[0]
    return None if chosen < 0 else reported[chosen].checkpoint


def load(engine: Engine, saved: Saved, universal: Path | None) -> None:
    """Puts a checkpoint into the engine.

    Args:
        universal: folder of DeepSpeed's universal form of it, where the number of workers has changed.
    """
    place = saved.folder if universal is None else universal
    found, _ = engine.engine.load_checkpoint(str(place), tag=TAG)
    if found is None:
        raise InputError(
            f"{place}: DeepSpeed finds no checkpoint there; remove the folder to go on from the one before"
        )
    if engine.average is None:
        return
    if saved.world == engine.slots.world:
        with SafetensorsFile(saved.folder / "average" / f"{engine.rank}.safetensors") as file:
            for i, part in enumerate(engine.average):
                part.copy_(file.read(str(i)))
        return
    with SafetensorsFile(saved.folder / "model.safetensors") as file:
        engine.set_average({name: file.read(name).float() for name in engine.names})


def to_universal(saved: Saved, out: Path) -> Path:
    """Converts every worker's shards to DeepSpeed's universal form, which any number of workers can load."""
    from deepspeed.checkpoint.ds_to_universal import main

    main(
        Namespace(
            input_folder=str(saved.folder / TAG), output_folder=str(out / TAG), num_extract_workers=1,
            num_merge_workers=1, keep_temp_folder=False, strict=True, inject_missing_state=True,
        )
    )  # fmt: skip
    return out
