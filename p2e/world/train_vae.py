"""Stage 1 of the world: the autoencoder, trained on generic clips; `torchrun -m p2e.world.rebuild vae` on several GPUs.

Loss of a clip: root mean squared error plus half the mean absolute error plus a small Kullback-Leibler term. The root
weighs clips alike in decibels, which is how the reconstruction is judged.
"""

import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from p2e.adapt.latents import to_model_range
from p2e.schedule import average_decay
from p2e.world.config import WorldVaeConfig
from p2e.world.parallel import Worker, average_gradients
from p2e.world.pause import Pause, Paused
from p2e.world.pool import draw_effect_clips, draw_pool
from p2e.world.run_state import RunState
from p2e.world.schedule import Schedule
from p2e.world.vae import build_vae, channels_last, decode_clip, encode_clip, psnr

__all__ = ["measure_vae", "train_vae"]


def vae_loss(vae: Any, clips: Tensor, noise: Tensor, kl_weight: float) -> Tensor:
    """The loss of a batch [B, 3, F, H, W] in -1..1, with the noise of the latents given: [B, Z, f + 1, h, w]."""
    mean, log_variance = encode_clip(vae, clips)
    decoded = decode_clip(vae, mean + torch.exp(0.5 * log_variance) * noise)
    error = decoded.float() - clips
    squared = error.square().flatten(1).mean(1)
    kl = 0.5 * (mean.float().square() + log_variance.float().exp() - 1 - log_variance.float()).mean()
    return (squared + 1e-6).sqrt().mean() + 0.5 * error.abs().mean() + kl_weight * kl


@torch.no_grad()
def measure_vae(vae: Any, clips: Tensor, batch: int = 32) -> Tensor:
    """Reconstruction PSNR in dB of every clip of uint8 [B, F, 3, H, W], through the latent mean."""
    scores = []
    for part in clips.split(batch):
        x = to_model_range(part)
        scores.append(psnr(decode_clip(vae, encode_clip(vae, x)[0]).float(), x))
    return torch.cat(scores)


@torch.no_grad()
def fit_latent_statistics(vae: Any, clips: Tensor, worker: Worker, batch: int = 64) -> None:
    """Sets latents_mean and latents_std of the configuration from clips, so that normalised latents have unit scale."""
    latents = torch.cat([encode_clip(vae, to_model_range(part))[0].float() for part in clips.split(batch)])
    mean = worker.mean(latents.mean((0, 2, 3, 4)))
    square = worker.mean(latents.square().mean((0, 2, 3, 4)))
    std = (square - mean.square()).clamp(min=1e-8).sqrt()
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())


def train_vae(
    config: WorldVaeConfig, out: Path, worker: Worker, *, state: Path, pause: Pause, init: Path | None = None
) -> dict[str, float]:
    """Trains the autoencoder and saves it to `out` as diffusers does, in float32, with its numbers in report.json.

    Args:
        state: file that keeps the run when it is paused, and from which it then goes on.
        pause: when that is.
        init: a saved autoencoder to go on from (weights only; the optimizer starts anew).

    Returns:
        Seconds, steps, and PSNR on unseen motion clips and effect clips: mean and worst clip.

    Raises:
        Paused: it was due; the state is saved.
    """
    from diffusers import AutoencoderKLWan

    torch.manual_seed(config.seed)
    vae: Any = AutoencoderKLWan.from_pretrained(init) if init else build_vae()
    vae.to(worker.device)
    cuda = worker.device.type == "cuda"
    if cuda:
        channels_last(vae)
    average = copy.deepcopy(vae).requires_grad_(False)
    generator = torch.Generator(worker.device).manual_seed(1000 * config.seed + worker.rank)
    started = time.perf_counter()
    pool, _ = draw_pool(config.pool, generator, worker.device)
    drawn = time.perf_counter() - started
    parameters = list(vae.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=cuda)
    compiled = torch.compile(vae_loss) if cuda else vae_loss
    kept = RunState(state, vae, average, [optimizer], config.model_dump(mode="json", exclude={"measured"}))
    step, before = kept.load()
    begun = step
    schedule = Schedule(config.steps, config.warmup, config.max_seconds, worker, before)
    height, width = pool.shape[-2] // 8, pool.shape[-1] // 8
    shape = (config.batch, vae.config.z_dim, 1 + (pool.shape[1] - 1) // 4, height, width)
    loss = torch.zeros(())
    while (scale := schedule.scale(step)) is not None:
        if step > begun and pause.due(step):
            if worker.is_first:
                kept.save(step, schedule.elapsed())
            raise Paused(f"vae: paused after {step} of {config.steps} steps")
        # By the step, so that a run that goes on draws what it would have drawn.
        generator.manual_seed((config.seed * 1_000_003 + step) * worker.size + worker.rank)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * scale
        index = torch.randint(len(pool), (config.batch,), generator=generator, device=worker.device)
        clips = to_model_range(pool[index])
        noise = torch.randn(shape, generator=generator, device=worker.device)
        with torch.autocast(worker.device.type, torch.bfloat16, enabled=cuda):
            loss = compiled(vae, clips, noise, config.kl_weight)
        optimizer.zero_grad()
        loss.backward()
        average_gradients(parameters, worker)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        decay = average_decay(config.ema, step)
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), parameters, 1 - decay)
        step += 1
        if worker.is_first and step % 250 == 0:
            print(f"vae {step} loss {loss.item():.4f} {schedule.elapsed():.0f} s", flush=True)
    fit_latent_statistics(average, pool[:1024], worker)
    unseen = torch.Generator(worker.device).manual_seed(987_654)
    motion = measure_vae(average, draw_pool(config.measured, unseen, worker.device)[0])
    effects = measure_vae(average, draw_effect_clips(config.measured, unseen, worker.device))
    report = {
        "steps": step, "workers": worker.size, "seconds_drawing": drawn, "seconds": schedule.elapsed(),
        "loss": loss.item(), "psnr_motion": motion.mean().item(), "psnr_motion_worst": motion.min().item(),
        "psnr_effects": effects.mean().item(), "psnr_effects_worst": effects.min().item(),
    }  # fmt: skip
    if worker.is_first:
        average.to(torch.bfloat16).save_pretrained(out, max_shard_size="14MB")
        (out / "report.json").write_text(json.dumps(report | {"config": config.model_dump(mode="json")}, indent=1))
        print("vae", {k: round(v, 3) if math.isfinite(v) else v for k, v in report.items()}, flush=True)
    return report
