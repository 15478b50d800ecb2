"""A random image-to-video pipeline of the world's form, small enough for tests: real classes, nothing trained.

The transformer has one or two blocks of width 32, the VAE 8 base channels and 4 latent ones; 32 x 32 x 5 frames in four
steps take about a tenth of a second.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanTransformer3DModel
from torch import Tensor

from p2e.bases.base import Base
from p2e.bases.wan import wan_base
from p2e.lora.lora import Factors, Lora
from p2e.text import TextStates

Z_CHANNELS = 4
TEXT_DIM = 384  # MiniLM, as in the world


def tiny_base(name: str = "world", *, layers: int = 2, heads: int = 2, head_dim: int = 16, ffn: int = 64) -> Base:
    """A site table of the world's form at a tiny size (20 sites), under the name of `name`."""
    return wan_base(
        name, num_layers=layers, heads=heads, head_dim=head_dim, ffn=ffn, in_channels=2 * Z_CHANNELS + 4,
        out_channels=Z_CHANNELS, text_dim=TEXT_DIM, patch_size=(1, 1, 1), freq_dim=16,
    )  # fmt: skip


def tiny_transformer(base: Base | None = None, seed: int = 0) -> Any:
    """The WanTransformer3DModel of a tiny base, random weights, float32, eval mode."""
    torch.manual_seed(seed)
    return WanTransformer3DModel(**(base or tiny_base()).diffusers_config).eval().requires_grad_(False)


def tiny_vae(seed: int = 1) -> Any:
    """An AutoencoderKLWan like the world's: factors 8 in space and 4 in time, 4 latent channels."""
    torch.manual_seed(seed)
    statistics: Any = {"latents_mean": [0.0] * Z_CHANNELS, "latents_std": [1.0] * Z_CHANNELS}
    vae = AutoencoderKLWan(
        base_dim=8, decoder_base_dim=8, z_dim=Z_CHANNELS, dim_mult=[1, 2, 2], num_res_blocks=1,
        temperal_downsample=[True, True], patch_size=2, in_channels=12, out_channels=12, is_residual=True,
        scale_factor_spatial=8, scale_factor_temporal=4, **statistics,
    )  # fmt: skip
    return vae.eval().requires_grad_(False)


def tiny_pipeline(base: Base | None = None, seed: int = 0) -> Any:
    """A WanImageToVideoPipeline of the world's form, without a text encoder: pass it prompt_embeds."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    parts: Any = {"tokenizer": None, "text_encoder": None, "scheduler": scheduler}
    return WanImageToVideoPipeline(vae=tiny_vae(seed + 1), transformer=tiny_transformer(base, seed), **parts)


def tiny_states(prompts: int = 1, tokens: int = 8, seed: int = 0) -> TextStates:
    """Random token states [prompts, tokens, 384], the last two padded."""
    states = torch.randn(prompts, tokens, TEXT_DIM, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(prompts, tokens, dtype=torch.bool)
    mask[:, -2:] = False
    return TextStates(states * mask[..., None], mask)


def tiny_lora(
    base: Base | None = None,
    *,
    rank: int = 4,
    seed: int = 0,
    size: float = 0.3,
    covers: Callable[[str], bool] = lambda _: True,
    biases: Mapping[str, Tensor] | None = None,
) -> Lora:
    """A random LoRA whose update at every covered site has entries of about `size` times those of W0.

    Args:
        covers: which modules ("self_attn.q") it adapts.
        biases: site key -> bias update.
    """
    base = base or tiny_base()
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for site in base.sites:
        if covers(site.module):
            a = torch.randn(rank, site.d_in, generator=generator) * site.d_in**-0.5
            b = torch.randn(site.d_out, rank, generator=generator) * size * rank**-0.5
            factors[site.key] = Factors(a, b)
    return Lora(base.name, factors, biases or {})
