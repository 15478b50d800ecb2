"""Makes LoRAs of methods on a worker: predicted, blended or looked up in the library, or trained in the world."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.lora_plan import LoraRecord, LoraTask, Wanted
from p2e.errors import InputError, P2EError
from p2e.files import atomic_path, file_sizes, write_text
from p2e.lora.lora import Lora
from p2e.lora.manifest import Manifest, read_effect

__all__ = ["make_loras"]


def make_loras(task: LoraTask, device: str) -> dict[str, str]:
    """Makes the LoRAs of a task that are not there yet -> key, "" or why it could not be made."""
    from p2e.commands.options import quiet_libraries

    quiet_libraries()
    there = set(file_sizes(task.output))
    wanted = [want for want in task.wanted if f"{want.key}.json" not in there]
    failed = dict.fromkeys((want.key for want in task.wanted), "")
    try:
        if wanted:
            MAKERS[task.kind](task, wanted, device)
    except Exception as error:  # other tasks go on
        text = " ".join(str(error).split())[:500]
        reason = text if isinstance(error, P2EError) else f"{type(error).__name__}: {text}"
        made = set(file_sizes(task.output))
        failed |= {want.key: reason for want in wanted if f"{want.key}.json" not in made}
    return failed


def _open(task: LoraTask) -> tuple[Any, Any, Any]:
    """Base, its weights, its text encoder."""
    from p2e.bases import open_base
    from p2e.text import encoder_for

    base, weights = open_base(task.base)
    if weights is None:
        raise InputError(f"{task.base}: no weights; give the folder that holds them")
    return base, weights, encoder_for(base, weights.folder)


def _keep(task: LoraTask, key: str, lora: Lora, base: Any) -> None:
    from p2e.lora.formats import write_lora

    with tempfile.TemporaryDirectory(prefix="p2e-") as folder:
        files = write_lora(f"{folder}/{key}.safetensors", lora, base)
        for path in files:  # which may be for an object store
            with atomic_path(f"{task.output}/{path.name}") as target:
                shutil.copyfile(path, target)
    names: Any = {path.stem[len(key) :].lstrip("_"): path.name for path in files}
    _record(task, key, names.get("", names))


def _record(task: LoraTask, key: str, lora: str | dict[str, str]) -> None:
    write_text(f"{task.output}/{key}.json", LoraRecord(lora=lora).to_json())


def _predict(task: LoraTask, wanted: Sequence[Wanted], device: str) -> None:
    from p2e.hypernet.checkpoint import load_checkpoint
    from p2e.predict import predict_loras

    base, weights, encoder = _open(task)
    checkpoint = load_checkpoint(task.source, device, base=base)
    for want in wanted:  # one at a time, as `p2e predict` does: the numbers do not depend on what else is asked
        (lora,) = predict_loras(checkpoint, weights, [want.prompt], encoder)
        _keep(task, want.key, lora, base)


def _library(task: LoraTask) -> tuple[Manifest, dict[str, Any]]:
    """The manifest and its training entries whose files are there."""
    manifest = Manifest.load(task.source)
    entries = {}
    for entry in manifest.entries:
        paths = [manifest.locate(path) for _, path, _ in entry.files()]
        if entry.split == "train" and all(_exists(path) for path in paths):
            entries[entry.effect] = entry
    return manifest, entries


def _exists(path: str) -> bool:
    import fsspec

    file_system, inner = fsspec.core.url_to_fs(path)
    return file_system.exists(inner)


def _mean(task: LoraTask, wanted: Sequence[Wanted], device: str) -> None:
    from p2e.bases import open_base
    from p2e.world.columns import MEAN_RANK
    from p2e.world.controls import mean_lora

    base, (manifest, entries) = open_base(task.base)[0], _library(task)
    mean = mean_lora([read_effect(manifest, entry, base) for entry in entries.values()], MEAN_RANK)
    for want in wanted:
        _keep(task, want.key, mean, base)


def _nearest(task: LoraTask, wanted: Sequence[Wanted], device: str) -> None:
    from p2e.world.controls import nearest_effects

    encoder, (manifest, entries) = _open(task)[2], _library(task)
    library = {name: encoder.encode(entry.prompts) for name, entry in entries.items()}
    found = nearest_effects(encoder.encode([want.prompt for want in wanted]), library)
    for want, name in zip(wanted, found, strict=True):
        files = {expert or "": manifest.locate(path) for expert, path, _ in entries[name].files()}
        _record(task, want.key, files.get("", files))


def _softmax(task: LoraTask, wanted: Sequence[Wanted], device: str) -> None:
    from p2e.world.columns import MEAN_RANK, Column
    from p2e.world.controls import softmax_weights, weighed_lora

    (base, _, encoder), (manifest, entries) = _open(task), _library(task)
    library = {name: encoder.encode(entry.prompts) for name, entry in entries.items()}
    loras = [read_effect(manifest, entry, base) for entry in entries.values()]
    temperature = Column.parse(task.column).temperature
    weights = softmax_weights(encoder.encode([want.prompt for want in wanted]), library, temperature)
    for want, row in zip(wanted, weights.tolist(), strict=True):
        _keep(task, want.key, weighed_lora(loras, row, MEAN_RANK), base)


def _train(task: LoraTask, wanted: Sequence[Wanted], device: str) -> None:
    from eval.world.run import open_world
    from p2e.world.columns import Column, ColumnLoras
    from p2e.world.effects import EFFECTS, effect_index

    column, folder = Column.parse(task.column), Path(task.source)
    specs = [EFFECTS[effect_index(want.effect)] for want in wanted]
    for want, spec in zip(wanted, specs, strict=True):
        if want.prompt and want.prompt != spec.unseen_prompts[-1]:
            raise InputError(f"{want.effect}: {column.kind} begins from the world's own prompt; leave out prompts")
    world = open_world(folder, [spec.name for spec in specs], Path(f"{task.output}/text"))
    loras = ColumnLoras(world, task.recipe).of(column, specs, specs, -1)
    for want, lora in zip(wanted, loras, strict=True):
        _keep(task, want.key, lora, world.base)


MAKERS = {"predicted": _predict, "mean": _mean, "nearest": _nearest, "softmax": _softmax, "trained": _train}
