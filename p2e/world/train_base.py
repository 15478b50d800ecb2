"""Stage 2 of the world: the image-to-video transformer, trained on latents of generic clips with coarse captions.

The captions say what kind of thing happens and never which colour, visitor or direction, so the base learns to move,
recolour, warp and bring things in without knowing any effect. `torchrun -m p2e.world.rebuild base` on several GPUs.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from p2e.adapt.flow import flow_loss, sample_times
from p2e.adapt.latents import encode_pairs
from p2e.bases.wan import WAN_BASES
from p2e.text import TextStates
from p2e.world.config import WorldBaseConfig
from p2e.world.parallel import Worker, average_gradients
from p2e.world.pool import draw_pool
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


def train_base(
    config: WorldBaseConfig, vae: Any, captions: TextStates, out: Path, worker: Worker, init: Path | None = None
) -> dict[str, float]:
    """Trains the transformer and saves its running average to `out` as diffusers does, with report.json.

    Args:
        vae: the trained autoencoder, on the worker's device.
        captions: token states of `motion.CAPTIONS`, in that order.
        init: a saved transformer to go on from (weights only; the optimizer starts anew).
    """
    from diffusers import WanTransformer3DModel

    torch.manual_seed(config.seed)
    device, cuda = worker.device, worker.device.type == "cuda"
    transformer: Any = WanTransformer3DModel.from_pretrained(init) if init else build_transformer()
    transformer.to(device).requires_grad_(True).train()
    average = copy.deepcopy(transformer).requires_grad_(False)
    generator = torch.Generator(device).manual_seed(77_000 + 1000 * config.seed + worker.rank)
    schedule = Schedule(config.steps, config.warmup, config.max_seconds, worker)
    latents, conditions, caption = [], [], []
    while sum(map(len, latents)) < config.pool:
        clips, ids = draw_pool(min(2048, config.pool), generator, device)
        x, c = encode_clips(vae, clips)
        latents.append(x)
        conditions.append(c)
        caption.append(ids)
    pool, condition, caption = torch.cat(latents), torch.cat(conditions), torch.cat(caption)
    encoded = schedule.elapsed()
    text = captions.states.to(device, torch.bfloat16)
    parameters = list(transformer.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=cuda)
    compiled = torch.compile(transformer) if cuda else transformer
    step, loss = 0, torch.zeros(())
    while (scale := schedule.scale(step)) is not None:
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * scale
        index = torch.randint(len(pool), (config.batch,), generator=generator, device=device)
        x, c, words = pool[index].float(), condition[index].float(), text[caption[index]]
        kept = torch.rand(config.batch, 1, 1, generator=generator, device=device) >= config.text_dropout
        times = sample_times(config.batch, generator, device, shift=config.shift)
        noise = torch.randn(x.shape, generator=generator, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            loss = flow_loss(compiled, x, c, words.float() * kept, times, noise).mean()
        optimizer.zero_grad()
        loss.backward()
        average_gradients(parameters, worker)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch._foreach_lerp_(list(average.parameters()), parameters, 1 - min(config.ema, (1 + step) / (10 + step)))
        step += 1
        if worker.is_first and step % 250 == 0:
            print(f"base {step} loss {loss.item():.4f} {schedule.elapsed():.0f} s", flush=True)
    report = {
        "steps": step, "workers": worker.size, "seconds_encoding": encoded, "seconds": schedule.elapsed(),
        "loss": loss.item(),
    }  # fmt: skip
    if worker.is_first:
        average.to(torch.bfloat16).save_pretrained(out, max_shard_size="14MB")
        (out / "report.json").write_text(json.dumps(report | {"config": config.model_dump(mode="json")}, indent=1))
        print("base", report, flush=True)
    return report
