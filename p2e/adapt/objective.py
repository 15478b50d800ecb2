"""What a base was trained to predict, and when: told by its scheduler.

Shapes: B clips; times [B] in 0..1, where 1 is pure noise; latents and noise [B, Z, f, h, w].
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from p2e.errors import FormatError

__all__ = ["Diffusion", "Flow", "Objective", "objective_of", "sample_within", "shift_of"]

DEFAULT_SHIFT = 3.0


class Objective(Protocol):
    """How latents are mixed with noise, and what the transformer answers with."""

    def timestep(self, times: Tensor) -> Tensor:
        """What the transformer is told of the times."""
        ...

    def mix(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The noisy latents."""
        ...

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the transformer should answer."""
        ...


def wide(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1, 1)


class Flow:
    """Flow matching: x_t = (1 - t) x_0 + t e, and the answer is e - x_0."""

    def timestep(self, times: Tensor) -> Tensor:
        return 1000 * times

    def mix(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        return (1 - wide(times)) * latents + wide(times) * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        return noise - latents


@dataclass(frozen=True)
class Diffusion:
    """Diffusion in discrete steps: x_k = sqrt(c_k) x_0 + sqrt(1 - c_k) e.

    For v the answer is sqrt(c_k) e - sqrt(1 - c_k) x_0. Its squared error equals that of the x_0 it implies, weighted
    by 1 / (1 - c_k), as this model's own training has it; unlike that form it is defined at c_k = 1.

    Attributes:
        kept: c, the scheduler's cumulative products of alpha, [steps].
        answer: "v_prediction", "epsilon" or "sample".
    """

    kept: Tensor
    answer: str

    def timestep(self, times: Tensor) -> Tensor:
        return (times * len(self.kept)).long().clamp(max=len(self.kept) - 1)

    def scales(self, times: Tensor) -> tuple[Tensor, Tensor]:
        c = self.kept.to(times.device)[self.timestep(times)]
        return wide(c.sqrt()), wide((1 - c).sqrt())

    def mix(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        signal, rest = self.scales(times)
        return signal * latents + rest * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        signal, rest = self.scales(times)
        return {"v_prediction": signal * noise - rest * latents, "epsilon": noise, "sample": latents}[self.answer]


def objective_of(scheduler: Any, folder: str | Path) -> Objective:
    """The objective that a diffusers scheduler is for.

    Raises:
        FormatError: it is for none that is known here.
    """
    answer = scheduler.config.get("prediction_type", "flow_prediction")  # FlowMatchEulerDiscreteScheduler has none
    name = type(scheduler).__name__
    if answer == "flow_prediction" and (name.startswith("FlowMatch") or scheduler.config.get("use_flow_sigmas")):
        return Flow()
    if name.startswith("CogVideoX") and answer in ("v_prediction", "epsilon", "sample"):
        return Diffusion(scheduler.alphas_cumprod.float(), answer)
    raise FormatError(f"{folder}: scheduler {name} with prediction {answer!r} has no training objective here")


def shift_of(config: Any, tokens: int) -> float:
    """How far a flow scheduler moves its times towards noise, for a clip of so many tokens.

    Args:
        config: of the scheduler; dynamic shifts grow with the tokens as its pipeline computes them.
    """
    if config.get("use_dynamic_shifting"):
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        first, last = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        return math.exp(first + (last - first) * (tokens - low) / (high - low))
    return float(config.get("flow_shift") or config.get("shift") or DEFAULT_SHIFT)


def sample_within(
    count: int, generator: torch.Generator, *, sampling: str, shift: float, low: float = 0.0, high: float = 1.0
) -> Tensor:
    """Times in low..high, [count], on the generator's device: `p2e.adapt.flow.sample_times` conditioned on lying there.

    Drawn by the inverse of the distribution function, so that no draw is thrown away.
    """
    device = generator.device
    # Bounds before the shift, where the distribution is the plain one.
    bounds = torch.tensor([low, high], dtype=torch.float64)
    bounds = bounds / (shift - (shift - 1) * bounds)
    normal = sampling == "logit_normal"
    first, last = (torch.special.ndtr(torch.logit(bounds)) if normal else bounds).tolist()
    u = first + (last - first) * torch.rand(count, generator=generator, device=device, dtype=torch.float64)
    # The tails end where double precision does: both infinities would be times of exactly 0 or 1.
    t = torch.sigmoid(torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12))) if normal else u
    return (shift * t / (1 + (shift - 1) * t)).clamp(low, high).float()
