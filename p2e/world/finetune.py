"""Second stage of the world's hypernetwork: the loss of the frozen base, on the clips of the training effects.

`p2e.training.through_base` has the method. Several workers share the effects of a step and average their gradients.

Shapes: F training effects, P clips of each, E effects a step and worker, n clips of each in the step.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor

from p2e.adapt.flow import Clips, sample_times
from p2e.bases import WeightReader
from p2e.bases.base import Base
from p2e.config import AugmentConfig, Settings
from p2e.files import write_text
from p2e.hypernet.checkpoint import load_checkpoint, save_checkpoint
from p2e.hypernet.variants import Predictor
from p2e.lora.prepared import PreparedLibrary
from p2e.schedule import average_decay
from p2e.text import TextStates
from p2e.training.augment import augmented
from p2e.training.data import open_source
from p2e.training.through_base import ThroughBase
from p2e.world.effects import effect_index
from p2e.world.hypernet import KeptEncoder
from p2e.world.library import effect_data
from p2e.world.parallel import Worker, average_gradients
from p2e.world.pause import Pause, Paused
from p2e.world.run_state import RunState
from p2e.world.schedule import Schedule

__all__ = ["FinetuneConfig", "finetune"]


class FinetuneConfig(Settings):
    """The second stage. Its rate falls by a cosine."""

    steps: int = Field(default=2000, ge=1)
    max_seconds: float | None = Field(default=None, gt=0, description="the schedule ends by then even if steps remain")
    effects_per_step: int = Field(default=16, ge=1, description="of each worker")
    clips_per_effect: int = Field(default=4, ge=1, description="in a step")
    clips: int = Field(default=48, ge=1, description="of an effect in all: those that its LoRA was trained on")
    learning_rate: float = Field(default=3e-4, gt=0)
    warmup: int = Field(default=50, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.995, ge=0, lt=1)
    regression: float = Field(default=0.0, ge=0, description="weight of the library's errors, Frobenius")
    noise: float = Field(default=0.5, ge=0, description="on what the hypernetwork reads, as AugmentConfig.noise")
    shift: float = Field(default=2.0, gt=0)
    seed: int = 5


def finetune(
    config: FinetuneConfig, out: Path, base: Base, transformer: Any, vae: Any, text: Mapping[str, TextStates],
    worker: Worker, into: Path, *, state: Path, pause: Pause,
) -> None:  # fmt: skip
    """Goes on with out/checkpoint, on the prepared library of `out`; writes a checkpoint to `into`.

    Args:
        transformer, vae: of the base, on the worker's device.
        text: effect name -> token states of its prompts, the training paraphrases first.
        state: file that keeps the run when it is paused, and from which it then goes on.

    Raises:
        Paused: it was due; the state is saved.
    """
    device, cuda = worker.device, worker.device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    loaded = load_checkpoint(out / "checkpoint", device, dtype=torch.float32, base=base)
    model = loaded.model.requires_grad_(True).train()
    library = PreparedLibrary.open(out / "prepared")
    source = open_source(
        base, WeightReader(base, out / "base"), library, KeptEncoder(text), cast(Predictor, model), device=device,
        dtype=dtype, resident_bytes=32e9, across_sites=loaded.config.across_sites,
    )  # fmt: skip
    average = copy.deepcopy(model).requires_grad_(False)
    names = [library.effects[i].name for i in source.train]
    count = min(len(library.effects[i].prompts) for i in source.train)
    words = {name: text[name][:count] for name in names}
    data = effect_data([effect_index(name) for name in names], config.clips, vae, words, device)
    chosen = min(config.effects_per_step, len(names))
    through = ThroughBase(
        model, source, transformer, chosen, regression=config.regression, dtype=dtype, compiled=cuda
    )  # fmt: skip
    parameters: list[Tensor] = list(model.parameters())
    averaged: list[Tensor] = list(average.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=cuda
    )
    kept = RunState(state, model, average, [optimizer], config.model_dump(mode="json"))
    step, before = kept.load()
    begun = step
    schedule = Schedule(config.steps, config.warmup, config.max_seconds, worker, before)
    rows = torch.tensor([source.prompts[i][0] for i in source.train], device=device)
    library_index = torch.tensor(source.train, device=device)
    augment, generator = AugmentConfig(noise=config.noise), torch.Generator(device)
    history: list[dict[str, float]] = []
    recent, since = torch.zeros((), device=device), step

    def log() -> None:
        nonlocal recent, since
        history.append({"step": step, "loss": worker.mean(recent).item() / (step - since)})
        recent, since = torch.zeros((), device=device), step
        if worker.is_first:
            print(f"finetune {history[-1]} {schedule.elapsed():.0f} s", flush=True)

    while (scale := schedule.scale(step)) is not None:
        if step > begun and pause.due(step):
            if worker.is_first:
                kept.save(step, schedule.elapsed())
            raise Paused(f"finetune: paused after {step} of {config.steps} steps")
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * scale
        # The effects of a step are drawn alike on all workers and shared out, so that none is met twice in a step.
        generator.manual_seed(config.seed * 1_000_003 + step)
        order = torch.randperm(len(names), generator=generator, device=device)
        effects = order.roll(-worker.rank * chosen)[:chosen]
        generator.manual_seed((config.seed * 1_000_003 + step) * worker.size + worker.rank + 1)
        prompt = torch.randint(count, (chosen,), generator=generator, device=device)
        key = torch.randint(2**62, (chosen,), generator=generator, device=device)
        states, mask = source.text[rows[effects] + prompt], source.text_mask[rows[effects] + prompt]
        read = augmented(states, mask, states, key, augment)
        clips = _clips(data.latents, data.condition, data.text[effects, prompt], effects, config, generator)
        optimizer.zero_grad()
        recent += through.backward(read.text, read.mask, library_index[effects], clips).mean()
        average_gradients(parameters, worker)
        torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        with torch.no_grad():
            decay = average_decay(config.ema, step)
            torch._foreach_lerp_(averaged, parameters, 1 - decay)
        step += 1
        if step % 100 == 0:
            log()
    if step > since:  # the clock ends a schedule anywhere
        log()
    through.close()
    if worker.is_first:
        save_checkpoint(
            into, average, base=base, config=loaded.config, scales=loaded.scales, base_hash=loaded.base_hash,
            library_hash=loaded.library_hash, targets=loaded.targets, step=step,
            training={"first_stage": loaded.settings["training"], "second_stage": config.model_dump(mode="json")},
            dtype=torch.bfloat16,
        )  # fmt: skip
        write_text(into / "history.json", json.dumps({"history": history}))


def _clips(
    latents: Tensor, condition: Tensor, text: Tensor, effects: Tensor, config: FinetuneConfig,
    generator: torch.Generator,
) -> Clips:  # fmt: skip
    """n clips of each effect [E] of all [F, P, ...], with the prompt [E, T, D] of each and draws of their own."""
    chosen, n = len(effects), config.clips_per_effect
    pick = torch.randint(latents.shape[1], (chosen, n), generator=generator, device=latents.device)
    x = latents[effects[:, None], pick].flatten(0, 1).float()
    c = condition[effects[:, None], pick].flatten(0, 1).float()
    times = sample_times(len(x), generator, latents.device, shift=config.shift)
    noise = torch.randn(x.shape, generator=generator, device=latents.device)
    return Clips(x, c, text.repeat_interleave(n, 0).float(), times, noise)
