"""The LoRA training loop: G LoRAs side by side on one frozen transformer, G = 1 for a single effect.

Shapes: G LoRAs, P clips each, K captions each, Z latent channels, T text tokens, D their width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from p2e.adapt.config import AdaptConfig
from p2e.adapt.flow import flow_loss, sample_times
from p2e.adapt.grouped import GroupedLoras
from p2e.schedule import warm_cosine

__all__ = ["AdaptData", "LoraRun", "RunKeeper", "optimise", "train_loras"]


@dataclass(frozen=True)
class AdaptData:
    """What the LoRAs learn from, encoded once.

    Attributes:
        latents, condition: normalised [G, P, Z, f + 1, h, w].
        text: token states [G, K, T, D].
        caption: which of the K captions belongs to clip p, [G, P]; None draws one at random each time.
    """

    latents: Tensor
    condition: Tensor
    text: Tensor
    caption: Tensor | None = None


@dataclass(frozen=True)
class LoraRun:
    """All that changes while LoRAs are trained, to be saved and put back in place."""

    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    generator: torch.Generator | None
    tail: Tensor


class RunKeeper(Protocol):
    """Keeps a run on disk, so that it can be cut off and go on."""

    def restore(self, run: LoraRun) -> int:
        """Puts the run back where it was saved -> the steps it had taken; 0 where there is nothing."""
        ...

    def look(self, run: LoraRun, step: int) -> None:
        """Called before a step, when `step` have been taken; may save, and may raise to end the run."""
        ...


def rate(config: AdaptConfig, step: int) -> float:
    """Learning rate of a step: linear warm-up, then a cosine from learning_rate to final_rate of it."""
    warmup = round(config.warmup_fraction * config.steps)
    return config.learning_rate * warm_cosine(step, warmup, step / config.steps, config.final_rate)


def clip_each(gradients: list[Tensor], limit: float) -> None:
    """Scales the gradient of every LoRA of a group to norm `limit` at most; each gradient is [G, ...]."""
    squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)
    factor = (limit / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.ndim - 1)))


def optimise(
    parameters: list[nn.Parameter], losses_of: Callable[[int, int], Tensor], groups: int, config: AdaptConfig, *,
    accumulate: int = 1, on_step: Callable[[int, Tensor], None] | None = None, keeper: RunKeeper | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """AdamW over the parameters of G LoRAs, by the recipe's rate; the mean losses of the last tenth of the steps, [G].

    Args:
        losses_of: (step, number of the batch in the step) -> the losses of each LoRA, [G].
        accumulate: batches whose gradients are averaged into one step.
        on_step: called with the step and the losses [G] (on the device; reading them waits for it).
        keeper: keeps the run, so that it can be cut off and go on; None keeps nothing.
        generator: what `losses_of` draws from, where it goes on from step to step, for the keeper.
    """
    device = parameters[0].device
    tail = torch.zeros(groups, device=device)
    tail_start = config.steps - max(1, config.steps // 10)
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=device.type == "cuda"
    )
    run = LoraRun(parameters, optimizer, generator, tail)
    for step in range(keeper.restore(run) if keeper else 0, config.steps):
        if keeper is not None:
            keeper.look(run, step)
        for group in optimizer.param_groups:
            group["lr"] = rate(config, step)
        optimizer.zero_grad()
        seen = []
        for number in range(accumulate):
            losses = losses_of(step, number)
            (losses.sum() if accumulate == 1 else losses.sum() / accumulate).backward()
            seen.append(losses.detach())
        clip_each([p.grad for p in parameters if p.grad is not None], config.clip)
        optimizer.step()
        losses = seen[0] if accumulate == 1 else torch.stack(seen).mean(0)
        if step >= tail_start:
            tail += losses / (config.steps - tail_start)
        if on_step is not None:
            on_step(step, losses)
    return tail


def train_loras(
    transformer: Any, loras: GroupedLoras, data: AdaptData, config: AdaptConfig, *,
    on_step: Callable[[int, Tensor], None] | None = None, compiled: bool = False,
    keeper: RunKeeper | None = None,
) -> Tensor:  # fmt: skip
    """Trains `loras` in place and returns the mean loss of each over the last tenth of the steps, [G].

    For bases of the world's form, whose clips all have one size: shapes are fixed and nothing waits for the device.

    Args:
        transformer: the frozen base, on the device of `data`.
        on_step: called with the step and the losses [G] (on the device; reading them waits for it).
        compiled: run the transformer under torch.compile; shapes are fixed, so it compiles once.
        keeper: saves the run and puts it back.
    """
    device, groups, clips = data.latents.device, *data.latents.shape[:2]
    generator = torch.Generator(device).manual_seed(config.seed)
    rows = torch.arange(groups, device=device).unsqueeze(1)
    drawn = 1 if config.shared_draws else groups
    transformer.requires_grad_(False)
    model = torch.compile(transformer) if compiled else transformer

    def losses_of(_step: int, _number: int) -> Tensor:
        pick = torch.randint(clips, (drawn, config.batch), generator=generator, device=device).expand(groups, -1)
        if data.caption is None:
            words = torch.randint(data.text.shape[1], (drawn, config.batch), generator=generator, device=device)
            words = words.expand(groups, -1)
        else:
            words = data.caption[rows, pick]
        x = data.latents[rows, pick].flatten(0, 1).float()
        c = data.condition[rows, pick].flatten(0, 1).float()
        text = data.text[rows, words].flatten(0, 1).float()
        rest = (drawn * config.batch, *x.shape[1:])
        times = sample_times(rest[0], generator, device, sampling=config.sampling, shift=config.shift)
        noise = torch.randn(rest, generator=generator, device=device)
        if drawn < groups:
            times, noise = times.repeat(groups), noise.repeat(groups, *[1] * (noise.ndim - 1))
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            return flow_loss(model, x, c, text, times, noise).view(groups, -1).mean(1)

    with loras.attached(transformer) as parameters:
        return optimise(
            parameters, losses_of, groups, config, on_step=on_step, keeper=keeper, generator=generator
        )  # fmt: skip
