"""A whole transformer with random weights, and one denoising step of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eval.speed.inputs import Size, speed_base
from p2e.bases.base import Base
from p2e.bases.wan import WAN_BASES

__all__ = ["PLANS", "Plan", "compiled", "denoiser", "random_transformer"]


@dataclass(frozen=True)
class Plan:
    """A transformer and what it denoises.

    Attributes:
        latent: [frames, height, width] of the latent video.
        tokens: of the prompt; the image branch has 257 tokens.
        rank: of the slot and of the LoRAs.
        repeats: of a step; swaps are repeated ten times as often.
        square: side of the matrix product that gives the matrix rate.
        backend: of torch.compile.
    """

    base: Base
    latent: tuple[int, int, int] = (21, 60, 104)
    tokens: int = 512
    rank: int = 32
    dtype: torch.dtype = torch.bfloat16
    repeats: int = 3
    copy_bytes: int = 4 << 30
    square: int = 8192
    backend: str = "inductor"


PLANS = {
    "paper": Plan(WAN_BASES["wan2.1-i2v-14b"]),
    "tiny": Plan(
        speed_base(Size(blocks=2, heads=2, head_dim=16, ffn=48, text_width=24)), latent=(2, 4, 4), tokens=8, rank=4,
        dtype=torch.float32, repeats=2, copy_bytes=1 << 16, square=256, backend="eager",
    ),
}  # fmt: skip


def random_transformer(plan: Plan, device: torch.device) -> Any:
    """The diffusers transformer of the base, its weights drawn on the device."""
    import diffusers

    kept = torch.get_default_dtype()
    torch.set_default_dtype(plan.dtype)
    try:
        with device:
            model = getattr(diffusers, plan.base.diffusers_class)(**plan.base.diffusers_config)
    finally:
        torch.set_default_dtype(kept)
    return model.eval().requires_grad_(False)


def denoiser(model: Any, plan: Plan, device: torch.device) -> Callable[[int], Tensor]:
    """One denoising step of random latents."""
    config, generator = plan.base.diffusers_config, torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(plan.dtype)

    inputs = {
        "hidden_states": draw(1, config["in_channels"], *plan.latent), "timestep": torch.tensor([500.0], device=device),
        "encoder_hidden_states": draw(1, plan.tokens, config["text_dim"]),
        "encoder_hidden_states_image": draw(1, 257, config["image_dim"]) if config.get("image_dim") else None,
    }  # fmt: skip

    @torch.no_grad()
    def step(_: int) -> Tensor:
        return model(**inputs, return_dict=False)[0]

    return step


def compiled(model: Any, plan: Plan) -> None:
    torch._dynamo.reset()
    model.compile_repeated_blocks(fullgraph=True, backend=plan.backend)
