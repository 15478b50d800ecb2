"""Makes the world from nothing, stage by stage: `p2e world rebuild`, or `torchrun -m p2e.world.rebuild`.

Stages, in order: text and captions (token states of all prompts; they need no GPU), vae, base, library, measure,
prepare, hypernet, zero. Each reads what the stages before it wrote into DIR; one that is done is skipped
(`p2e.world.stages` says when that is), so the same command goes on where it was paused or cut off.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from p2e.bases.wan import WAN_BASES
from p2e.config import Settings
from p2e.errors import InputError, P2EError
from p2e.files import sha256
from p2e.text import TextStates
from p2e.world.config import (
    WorldBaseConfig,
    WorldLibraryConfig,
    WorldMeasureConfig,
    WorldPrepareConfig,
    WorldTextConfig,
    WorldVaeConfig,
)
from p2e.world.effects import EFFECTS
from p2e.world.motion import CAPTIONS
from p2e.world.parallel import join, leave
from p2e.world.pause import PAUSED, Paused
from p2e.world.runner import plan, run_stages
from p2e.world.sprites import ATLAS_PATH
from p2e.world.stages import Job, Stage, Verdict
from p2e.world.states import kept_states
from p2e.world.table.spec import UNSEEN

__all__ = ["STAGES", "check", "effect_states", "main", "run", "status"]

WORLD = WAN_BASES["world"]
SCHEDULER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 2.0}


def open_vae(out: Path, device: torch.device) -> Any:
    from diffusers import AutoencoderKLWan

    vae: Any = AutoencoderKLWan.from_pretrained(out / "base" / "vae")
    return vae.to(device, torch.float32).requires_grad_(False).eval()


def open_transformer(out: Path, device: torch.device) -> Any:
    from diffusers import WanTransformer3DModel

    model: Any = WanTransformer3DModel.from_pretrained(out / "base" / "transformer")
    return model.to(device, torch.float32).requires_grad_(False).eval()


def write_pipeline_files(vae: Any, base: Path) -> None:
    """Makes `base`, which holds the transformer, a pipeline folder: the scheduler, and the index of its parts."""
    import diffusers

    scheduler = diffusers.UniPCMultistepScheduler(**SCHEDULER)
    scheduler.save_pretrained(base / "scheduler")
    pipeline: Any = diffusers.WanImageToVideoPipeline
    pipeline(
        tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler,
        transformer=open_transformer(base.parent, torch.device("cpu")),
    ).save_config(base)  # fmt: skip


def effect_states(out: Path) -> dict[str, TextStates]:
    """Token states of every effect's prompts, in the order of its table: training paraphrases, then unseen ones."""
    prompts = [prompt for spec in EFFECTS for prompt in spec.prompts]
    states, table, start = kept_states(prompts, out / "text"), {}, 0
    for spec in EFFECTS:
        table[spec.name] = states[start : start + len(spec.prompts)]
        start += len(spec.prompts)
    return table


def make_text(job: Job) -> None:
    if job.worker.is_first:
        effect_states(job.made)


def make_captions(job: Job) -> None:
    if job.worker.is_first:
        kept_states(CAPTIONS, job.made / "captions")


def make_vae(job: Job) -> None:
    from p2e.world.train_vae import train_vae

    state = job.state / "run.safetensors"
    train_vae(job.settings, job.made / "base" / "vae", job.worker, state=state, pause=job.pause)


def make_base(job: Job) -> None:
    from p2e.world.train_base import train_base

    vae, captions = open_vae(job.out, job.worker.device), kept_states(CAPTIONS, job.out / "captions")
    folder, state = job.made / "base" / "transformer", job.state / "run.safetensors"
    train_base(job.settings, vae, captions, folder, job.worker, state=state, pause=job.pause)
    if job.worker.is_first:
        write_pipeline_files(vae, job.made / "base")


def make_library(job: Job) -> None:
    from p2e.world.library import train_effects, write_library
    from p2e.world.lora_state import LoraRunState

    config, worker = job.settings, job.worker
    text = {name: states[: len(states.mask) - UNSEEN] for name, states in effect_states(job.out).items()}
    transformer, vae = open_transformer(job.out, worker.device), open_vae(job.out, worker.device)
    specs = EFFECTS[: config.effects]
    started = time.perf_counter()
    keeper = LoraRunState(job.state, config.model_dump(mode="json"), job.pause)
    loras, losses = train_effects(
        range(len(specs)), WORLD, transformer, vae, text, worker, config, wild=True, keeper=keeper
    )
    if worker.is_first:
        seconds = time.perf_counter() - started
        metadata = {
            "trained_by": "p2e.world.rebuild library", "steps": str(config.adapt.steps), "seconds": f"{seconds:.0f}",
            "workers": str(worker.size), "loss": f"{losses.mean():.4f}",
        }  # fmt: skip
        write_library(specs, loras, WORLD, job.made / "library", metadata)
        print("library", metadata, flush=True)


def make_fidelity(job: Job, file: str) -> None:
    """Fidelity of every effect under each column of the settings."""
    from p2e.world.fidelity import measure_columns

    out, worker = job.out, job.worker
    models = open_transformer(out, worker.device), open_vae(out, worker.device)
    measure_columns(job.settings, out, worker, WORLD, *models, effect_states(out), job.made / file)


def make_prepared(job: Job) -> None:
    from p2e.world.hypernet import prepare_world

    if job.worker.is_first:
        prepare_world(job.out, WORLD, job.settings.rank, str(job.worker.device), job.made / "prepared")


def make_hypernet(job: Job) -> None:
    """On the first worker alone: a hypernetwork of this size wants one GPU."""
    from p2e.training.loop import STATE
    from p2e.world.hypernet import train_hypernet

    if job.worker.is_first:
        run = job.state / "checkpoint"
        train_hypernet(job.out, WORLD, effect_states(job.out), job.settings, run, job.pause)
        shutil.copytree(run, job.made / "checkpoint", ignore=shutil.ignore_patterns(STATE))


def hypernet_settings(changes: Mapping[str, Any]) -> Settings:
    from p2e.world.hypernet import world_hypernet

    return world_hypernet(changes)


def parsed(model: type[Settings], source: str, **own: Any) -> Callable[[Mapping[str, Any]], Settings]:
    """Resolves changes of a stage's settings, whose defaults are the model's but for `own`."""
    return lambda changes: model.parse(own | dict(changes), source)


def effects_data() -> Any:
    return [asdict(spec) | {"parameters": dict(spec.parameters)} for spec in EFFECTS] + [sha256(ATLAS_PATH)]


def prompts_data() -> Any:
    return [[spec.name, spec.prompts] for spec in EFFECTS]


def motion_data() -> Any:
    return [CAPTIONS, sha256(ATLAS_PATH)]


STAGES = {
    stage.name: stage
    for stage in (
        Stage("text", parsed(WorldTextConfig, "text"), make_text, ("text",), data=prompts_data),
        Stage("captions", parsed(WorldTextConfig, "captions"), make_captions, ("captions",), data=lambda: CAPTIONS),
        Stage("vae", parsed(WorldVaeConfig, "vae"), make_vae, ("base/vae",), data=motion_data, saves=True),
        Stage(
            "base", parsed(WorldBaseConfig, "base"), make_base,
            ("base/transformer", "base/scheduler", "base/model_index.json"), ("captions", "vae"),
            data=motion_data, saves=True,
        ),
        Stage(
            "library", parsed(WorldLibraryConfig, "library"), make_library, ("library",), ("text", "vae", "base"),
            data=effects_data, saves=True,
        ),
        Stage(
            "measure", parsed(WorldMeasureConfig, "measure", columns=("cap", "base", "lora")),
            partial(make_fidelity, file="measure.json"), ("measure.json",), ("text", "vae", "base", "library"),
            data=effects_data,
        ),
        Stage("prepare", parsed(WorldPrepareConfig, "prepare"), make_prepared, ("prepared",), ("library",)),
        Stage("hypernet", hypernet_settings, make_hypernet, ("checkpoint",), ("text", "base", "prepare"), saves=True),
        Stage(
            "zero", parsed(WorldMeasureConfig, "zero", columns=("zero", "random", "mean", "nearest")),
            partial(make_fidelity, file="zero.json"), ("zero.json",), ("text", "vae", "base", "library", "hypernet"),
            data=effects_data,
        ),
    )
}  # fmt: skip


def check(stages: Sequence[str], pairs: Sequence[str], force: Sequence[str] = ()) -> dict[str, Settings]:
    """The settings of every stage, changed by `pairs` such as "vae.max_seconds=60" or "hypernet.loss.update=1".

    Raises:
        InputError: there is no such stage or setting, or `force` names a stage that is not to run.
    """
    for stage in (*stages, *force):
        if stage not in STAGES:
            raise InputError(f"no stage is named {stage!r}; the stages are {', '.join(STAGES)}")
    if stages and (others := [stage for stage in force if stage not in stages]):
        raise InputError(f"--force {others[0]}: not among the stages to run; name it there too")
    changes: dict[str, dict[str, Any]] = {stage: {} for stage in STAGES}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        stage, *path = key.split(".")
        if stage not in STAGES or not path or not equals:
            raise InputError(f"{pair!r} is not a setting; write STAGE.KEY=JSON, such as vae.steps=100")
        target = changes[stage]
        for step in path[:-1]:
            target = target.setdefault(step, {})
            if not isinstance(target, dict):
                raise InputError(f"{pair!r}: {step} is set to a value before; keep one of the two")
        try:
            target[path[-1]] = json.loads(value)
        except ValueError:
            raise InputError(f"{pair!r}: the value is not JSON; quote a text, such as '\"float32\"'") from None
    return {name: stage.settings(changes[name]) for name, stage in STAGES.items()}


def run(
    stages: Sequence[str], out: Path, pairs: Sequence[str] = (), *, force: Sequence[str] = (),
    pause_after: float | None = None,
) -> None:  # fmt: skip
    """Makes the stages named, or all, in this process, one of those that torchrun started where it did.

    Args:
        out: DIR.
        pairs: changed settings.
        force: stages that run even if they are done.
        pause_after: seconds.

    Raises:
        Paused: the time is up, or SIGTERM came; the same call goes on.
        InputError: see `check`; or an input of a stage is missing, and the message names the stage to run.
    """
    settings = check(stages, pairs, force)
    run_stages(STAGES, stages or list(STAGES), out, settings, join(), force=force, pause_after=pause_after)


def status(out: Path, pairs: Sequence[str] = ()) -> Iterator[tuple[str, Verdict]]:
    """What a run of all stages with these settings would find."""
    return plan(STAGES, out, check((), pairs))


def main(arguments: Sequence[str] | None = None) -> None:
    """Exits with 0 done, 2 a mistake, 75 paused."""
    parser = argparse.ArgumentParser(prog="p2e.world.rebuild", description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], dest="pairs", metavar="STAGE.KEY=JSON")
    parser.add_argument("--force", action="append", default=[], metavar="STAGE")
    parser.add_argument("--pause-after", type=float, metavar="SECONDS")
    given = parser.parse_args(arguments)
    first = os.environ.get("RANK", "0") == "0"
    try:
        run(given.stages, given.out, given.pairs, force=given.force, pause_after=given.pause_after)
    except Paused as paused:
        if first:
            print(paused, flush=True)
        leave()
        sys.exit(PAUSED)
    except P2EError as error:
        if first:
            print(f"p2e: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    leave()


if __name__ == "__main__":
    main()
