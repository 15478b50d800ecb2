"""Makes the world from nothing, stage by stage: `torchrun --nproc-per-node N -m p2e.world.rebuild STAGE ... --out DIR`.

Stages, in order: text (token states of all prompts; needs no GPU), vae, base, library, measure, hypernet, zero. Each
writes into DIR and reads what the stages before it wrote there, so they can run in one call or in several.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from p2e.bases.wan import WAN_BASES
from p2e.errors import InputError
from p2e.text import TextStates
from p2e.world.config import WorldBaseConfig, WorldLibraryConfig, WorldVaeConfig
from p2e.world.effects import EFFECTS
from p2e.world.motion import CAPTIONS
from p2e.world.parallel import Worker, join
from p2e.world.states import kept_effect_states, kept_states
from p2e.world.table.spec import UNSEEN

__all__ = ["STAGES", "main", "run"]

WORLD = WAN_BASES["world"]
SHARD = "14MB"
SCHEDULER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 2.0}


def _overrides(pairs: Sequence[str], stage: str) -> dict[str, Any]:
    """{"max_seconds": 60} of ["vae.max_seconds=60"] for the stage "vae"; nested keys by further dots."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        name, *path = key.split(".")
        if name not in STAGES or not path or not equals:
            raise InputError(f"{pair!r} is not a setting; write STAGE.KEY=JSON, such as vae.steps=100")
        if name == stage:
            target = values
            for step in path[:-1]:
                target = target.setdefault(step, {})
            try:
                target[path[-1]] = json.loads(value)
            except ValueError:
                raise InputError(f"{pair!r}: the value is not JSON; quote a text, such as '\"float32\"'") from None
    return values


def made_by(stage: str, path: Path) -> Path:
    """`path`, which an earlier stage wrote.

    Raises:
        InputError: it is not there.
    """
    if not path.exists():
        raise InputError(f"{path}: not there yet; run the stage {stage} first")
    return path


def open_vae(out: Path, device: torch.device) -> Any:
    from diffusers import AutoencoderKLWan

    vae: Any = AutoencoderKLWan.from_pretrained(made_by("vae", out / "base" / "vae"))
    return vae.to(device, torch.float32).requires_grad_(False).eval()


def open_transformer(out: Path, device: torch.device) -> Any:
    from diffusers import WanTransformer3DModel

    model: Any = WanTransformer3DModel.from_pretrained(made_by("base", out / "base" / "transformer"))
    return model.to(device, torch.float32).requires_grad_(False).eval()


def write_pipeline_files(out: Path) -> None:
    """Makes out/base a pipeline folder: the scheduler, and the index that names the classes of its parts."""
    import diffusers

    scheduler = diffusers.UniPCMultistepScheduler(**SCHEDULER)
    scheduler.save_pretrained(out / "base" / "scheduler")
    pipeline: Any = diffusers.WanImageToVideoPipeline
    pipeline(
        tokenizer=None, text_encoder=None, vae=open_vae(out, torch.device("cpu")), scheduler=scheduler,
        transformer=open_transformer(out, torch.device("cpu")),
    ).save_config(out / "base")  # fmt: skip


def effect_states(out: Path) -> dict[str, TextStates]:
    """Token states of every effect's prompts."""
    return kept_effect_states(EFFECTS, out / "text")


def stage_text(out: Path, worker: Worker, pairs: Sequence[str]) -> None:
    if worker.is_first:
        effect_states(out)
        kept_states(CAPTIONS, out / "text")


def stage_vae(out: Path, worker: Worker, pairs: Sequence[str]) -> None:
    from p2e.world.train_vae import train_vae

    train_vae(WorldVaeConfig.parse(_overrides(pairs, "vae")), out / "base" / "vae", worker)


def stage_base(out: Path, worker: Worker, pairs: Sequence[str]) -> None:
    from p2e.world.train_base import train_base

    settings = _overrides(pairs, "base")
    deadline = time.perf_counter() + settings.pop("pause_after", math.inf)
    config = WorldBaseConfig.parse(settings)
    vae, captions = open_vae(out, worker.device), kept_states(CAPTIONS, out / "text")
    folder = out / "base" / "transformer"
    train_base(config, vae, captions, folder, worker, state=out / "base.state", deadline=deadline)
    if worker.is_first:
        write_pipeline_files(out)


def stage_library(out: Path, worker: Worker, pairs: Sequence[str]) -> None:
    from p2e.world.library import train_effects, write_library

    config = WorldLibraryConfig.parse(_overrides(pairs, "library"))
    text = {name: states[: len(states.mask) - UNSEEN] for name, states in effect_states(out).items()}
    transformer, vae = open_transformer(out, worker.device), open_vae(out, worker.device)
    specs = EFFECTS[: config.effects]
    started = time.perf_counter()
    loras, losses = train_effects(range(len(specs)), WORLD, transformer, vae, text, worker, config, wild=True)
    if worker.is_first:
        seconds = time.perf_counter() - started
        metadata = {
            "trained_by": "p2e.world.rebuild library", "steps": str(config.adapt.steps), "seconds": f"{seconds:.0f}",
            "workers": str(worker.size), "loss": f"{losses.mean():.4f}",
        }  # fmt: skip
        write_library(specs, loras, WORLD, out / "library", metadata)
        print("library", metadata, flush=True)


def stage_measure(out: Path, worker: Worker, pairs: Sequence[str], stage: str = "measure") -> None:
    """Fidelity of every effect under each column, written to out/measure.json beside what stands there."""
    from diffusers import UniPCMultistepScheduler

    from p2e.world.columns import World
    from p2e.world.config import WorldMeasureConfig
    from p2e.world.fidelity import measure_columns

    columns = {"measure": None, "zero": ("zero", "random", "mean", "nearest", "softmax")}[stage]
    defaults = {"library": _overrides(pairs, "library")} | ({"columns": columns} if columns else {})
    config = WorldMeasureConfig.parse(defaults | _overrides(pairs, stage))
    made_by("library", out / "library" / "manifest.yaml")
    transformer, vae = open_transformer(out, worker.device), open_vae(out, worker.device)
    scheduler = UniPCMultistepScheduler.from_pretrained(out / "base" / "scheduler")
    world = World(out, WORLD, transformer, vae, scheduler, effect_states(out), worker)
    measure_columns(config, world, out / f"{config.name}.json")


def stage_hypernet(out: Path, worker: Worker, pairs: Sequence[str]) -> None:
    """On the first worker alone: a hypernetwork of this size wants one GPU."""
    from p2e.world.hypernet import WORLD_HYPERNET, prepare_world, train_hypernet

    if worker.is_first:
        made_by("library", out / "library" / "manifest.yaml")
        if not (out / "prepared").exists():
            prepare_world(out, WORLD, WORLD_HYPERNET.hypernet.rank, str(worker.device))
        settings = _overrides(pairs, "hypernet")
        train_hypernet(out, WORLD, effect_states(out), settings, settings.pop("name", "checkpoint"))


def stage_zero(out: Path, worker: Worker, pairs: Sequence[str]) -> None:
    stage_measure(out, worker, pairs, "zero")


STAGES = {
    "text": stage_text, "vae": stage_vae, "base": stage_base, "library": stage_library, "measure": stage_measure,
    "hypernet": stage_hypernet, "zero": stage_zero,
}  # fmt: skip


def run(stages: Sequence[str], out: Path, pairs: Sequence[str] = ()) -> None:
    """Runs stages in the order given. `pairs` are overrides of their settings: "vae.max_seconds=60"."""
    for stage in stages:
        if stage not in STAGES:
            raise InputError(f"no stage is named {stage!r}; the stages are {', '.join(STAGES)}")
    worker = join()
    out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        started = time.perf_counter()
        STAGES[stage](out, worker, pairs)
        if worker.size > 1:
            torch.distributed.barrier()
        if worker.is_first:
            print(f"stage {stage}: {time.perf_counter() - started:.1f} s on {worker.size} workers", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+", choices=list(STAGES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], dest="pairs", metavar="STAGE.KEY=JSON")
    arguments = parser.parse_args()
    run(arguments.stages, arguments.out, arguments.pairs)


if __name__ == "__main__":
    main()
