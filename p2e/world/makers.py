"""What each stage of the world does: from what the stages before it left in a folder to files of its own.

`p2e.world.rebuild` says which stages there are, `p2e.world.stages` what a `Job` is.
"""

import shutil
import time
from pathlib import Path
from typing import Any

import torch

from p2e.bases.wan import WAN_BASES
from p2e.text import TextStates
from p2e.world.effects import EFFECTS
from p2e.world.motion import CAPTIONS
from p2e.world.stages import Job
from p2e.world.states import kept_effect_states, kept_states
from p2e.world.table.spec import UNSEEN

__all__ = [
    "WORLD", "effect_states", "make_ablations", "make_base", "make_captions", "make_fidelity", "make_finetuned",
    "make_hypernet", "make_library", "make_moments", "make_prepared", "make_text", "make_vae",
    "open_transformer", "open_vae",
]  # fmt: skip

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
    """Token states of every effect's prompts."""
    return kept_effect_states(EFFECTS, out / "text")


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


def make_moments(job: Job) -> None:
    from p2e.world.moments import measure_moments

    if job.worker.is_first:
        transformer, vae = open_transformer(job.out, job.worker.device), open_vae(job.out, job.worker.device)
        path = job.made / "moments" / "moments.safetensors"
        loss = measure_moments(job.settings, job.out, WORLD, transformer, vae, effect_states(job.out), path)
        print(f"moments: loss {loss:.4f}", flush=True)


def make_fidelity(job: Job, folder: str) -> None:
    """Fidelity of every effect under each column of the settings: fidelity.json, and strips of the clips to keep."""
    from diffusers import UniPCMultistepScheduler

    from p2e.world.columns import World
    from p2e.world.fidelity import measure_columns

    out, device = job.out, job.worker.device
    transformer, vae = open_transformer(out, device), open_vae(out, device)
    scheduler = UniPCMultistepScheduler.from_pretrained(out / "base" / "scheduler")
    world = World(out, WORLD, transformer, vae, scheduler, effect_states(out), job.worker)
    measure_columns(job.settings, world, job.made / folder / "fidelity.json")


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


def make_finetuned(job: Job) -> None:
    from p2e.world.finetune import finetune

    models = open_transformer(job.out, job.worker.device), open_vae(job.out, job.worker.device)
    finetune(
        job.settings, job.out, WORLD, *models, effect_states(job.out), job.worker, job.made / "second_stage",
        state=job.state / "run.safetensors", pause=job.pause,
    )  # fmt: skip


def make_ablations(job: Job) -> None:
    """Variants of the hypernetwork, the arms shared out over the workers."""
    from p2e.world.ablations import train_ablations

    train_ablations(job.settings, job.out, WORLD, effect_states(job.out), job.worker, job.state, job.made)
