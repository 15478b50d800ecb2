"""Stage 2 of the world: the image-to-video transformer, trained on latents of generic clips with coarse captions.

The captions say what kind of thing happens and never which colour, visitor or direction, so the base learns to move,
recolour, warp and bring things in without knowing any effect. `torchrun -m p2e.world.rebuild base` on several GPUs.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from p2e.adapt.flow import flow_loss, sample_times
from p2e.adapt.latents import encode_pairs
from p2e.bases.wan import WAN_BASES
from p2e.schedule import average_decay
from p2e.text import TextStates
from p2e.world.config import WorldBaseConfig
from p2e.world.latent_pool import LatentPool
from p2e.world.parallel import Worker, average_gradients
from p2e.world.pause import Pause, Paused
from p2e.world.pool import draw_pool
from p2e.world.run_state import RunState
from p2e.world.schedule import Schedule
from p2e.world.vae import encode_clip

__all__ = ["build_transformer", "encode_clips", "train_base"]


def build_transformer() -> Any:
    """A fresh WanTransformer3DModel at the world's size."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(**WAN_BASES["world"].diffusers_config)


def encode_clips(vae: Any, clips: Tensor, batch: int = 64) -> tuple[Tensor, Tensor]:
    """`encode_pairs` by the whole-clip form of the autoencoder: bfloat16, on its device."""
    encode = torch.compile(encode_clip) if clips.is_cuda else encode_clip
    return encode_pairs(vae, clips, lambda x: encode(vae, x)[0], batch, torch.bfloat16)


def make_optimizers(transformer: nn.Module, config: WorldBaseConfig, fused: bool) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices of the blocks where it is asked for, at rates of one scale."""
    matrices = [p for p in transformer.blocks.parameters() if p.ndim == 2] if config.optimizer == "muon" else []  # pyright: ignore
    chosen = set(matrices)
    rest = [p for p in transformer.parameters() if p not in chosen]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=fused)
    ]
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                matrices, lr=config.learning_rate, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimizers


@torch.no_grad()
def unseen_loss(transformer: Any, draw: Any, text: Tensor, config: WorldBaseConfig, device: torch.device) -> float:
    """Mean flow loss on clips that no pool holds, at times spread evenly over the training times."""
    generator = torch.Generator(device).manual_seed(987_654_321)
    x, c, caption = draw(generator, config.measured)
    times = sample_times(len(x), generator, device, shift=config.shift)
    noise = torch.randn(x.shape, generator=generator, device=device)
    losses = []
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        for part in torch.arange(len(x), device=device).split(64):
            words = text[caption[part]].float()
            losses.append(flow_loss(transformer, x[part].float(), c[part].float(), words, times[part], noise[part]))
    return torch.cat(losses).mean().item()


def train_base(
    config: WorldBaseConfig, vae: Any, captions: TextStates, out: Path, worker: Worker, *,
    state: Path, pause: Pause,
) -> dict[str, float]:  # fmt: skip
    """Trains the transformer and saves its running average to `out` as diffusers does, with report.json.

    Args:
        vae: the trained autoencoder, on the worker's device.
        captions: token states of `motion.CAPTIONS`, in that order.
        state: file that keeps the run when it is paused, and from which it then goes on.
        pause: when that is.

    Raises:
        Paused: it was due; the state is saved.
    """
    torch.manual_seed(config.seed)
    device, cuda = worker.device, worker.device.type == "cuda"
    transformer: Any = build_transformer().to(device).requires_grad_(True).train()
    average = copy.deepcopy(transformer).requires_grad_(False)
    parameters = list(transformer.parameters())
    optimizers = make_optimizers(transformer, config, cuda)
    kept = RunState(
        state, transformer, average, optimizers, config.model_dump(mode="json", exclude={"measured"})
    )  # fmt: skip
    step, before = kept.load()
    begun = step
    schedule = Schedule(config.steps, config.warmup, config.max_seconds, worker, before)

    def draw(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
        clips, ids = draw_pool(count, generator, device)
        return *encode_clips(vae, clips), ids

    renewed = step // config.renew_every if config.renew_every else 0
    pool = LatentPool(draw, config.pool, device, seed=77_000 + 1000 * config.seed + worker.rank, renewed=renewed)
    drawn = schedule.elapsed() - before
    text = captions.states.to(device, torch.bfloat16)
    compiled = torch.compile(transformer) if cuda else transformer
    generator, loss = torch.Generator(device), torch.zeros(())
    while (scale := schedule.scale(step)) is not None:
        if step > begun and pause.due(step):
            if worker.is_first:
                kept.save(step, schedule.elapsed())
            raise Paused(f"base: paused after {step} of {config.steps} steps")
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * scale
        generator.manual_seed((config.seed * 1_000_003 + step) * worker.size + worker.rank)
        index = torch.randint(len(pool), (config.batch,), generator=generator, device=device)
        x, c, words = pool.latents[index].float(), pool.condition[index].float(), text[pool.caption[index]]
        with_text = torch.rand(config.batch, 1, 1, generator=generator, device=device) >= config.text_dropout
        times = sample_times(config.batch, generator, device, shift=config.shift)
        noise = torch.randn(x.shape, generator=generator, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            loss = flow_loss(compiled, x, c, words.float() * with_text, times, noise).mean()
        transformer.zero_grad()
        loss.backward()
        average_gradients(parameters, worker)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            decay = average_decay(config.ema, step)
            torch._foreach_lerp_(list(average.parameters()), parameters, 1 - decay)
        step += 1
        if worker.is_first and step % 250 == 0:
            print(f"base {step} loss {loss.item():.4f} {schedule.elapsed():.0f} s", flush=True)
        if config.renew_every and step % config.renew_every == 0:
            pool.renew()
    report = {
        "steps": step, "workers": worker.size, "seconds_drawing_first": drawn, "seconds": schedule.elapsed(),
        "loss": loss.item(), "unseen_loss": unseen_loss(average, draw, text, config, device),
    }  # fmt: skip
    if worker.is_first:
        average.to(torch.bfloat16).save_pretrained(out, max_shard_size="14MB")
        (out / "report.json").write_text(json.dumps(report | {"config": config.model_dump(mode="json")}, indent=1))
        print("base", report, flush=True)
    return report
