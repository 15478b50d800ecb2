"""`p2e adapt`: from a folder of captioned clips to a LoRA file, from scratch or from a given LoRA.

Clips are cut to the base's size, encoded once with their captions, and the loop of `p2e.adapt.train` does the rest.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from p2e import __version__
from p2e.adapt.clips import CaptionedClip, list_clips, load_clips
from p2e.adapt.config import AdaptConfig
from p2e.adapt.grouped import GroupedLoras
from p2e.adapt.latents import encode_pairs
from p2e.adapt.train import AdaptData, train_loras
from p2e.bases import Base, open_base
from p2e.errors import InputError
from p2e.lora.compose import blend
from p2e.lora.formats import read_lora, write_lora
from p2e.lora.lora import Lora
from p2e.text import encoder_for

__all__ = ["adapt", "encode_latents", "load_models"]


def load_models(folder: str | Path, device: str | torch.device) -> tuple[Any, Any]:
    """The transformer and the autoencoder of a diffusers pipeline folder, frozen, in float32.

    Raises:
        InputError: the folder is not such a pipeline, or the transformer is of a form that cannot be trained here.
    """
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    root = Path(folder)
    if not (root / "transformer" / "config.json").is_file() or not (root / "vae" / "config.json").is_file():
        raise InputError(f"{root}: no transformer and vae folders; give the diffusers form of a Wan base")
    transformer: Any = WanTransformer3DModel.from_pretrained(root / "transformer")
    vae: Any = AutoencoderKLWan.from_pretrained(root / "vae")
    wanted = 2 * vae.config.z_dim + 4
    if transformer.config.image_dim is not None or transformer.config.in_channels != wanted:
        raise InputError(
            f"{root}: fine-tuning needs an image-to-video transformer of {wanted} input channels and no image encoder; "
            f"this one has {transformer.config.in_channels}"
        )
    for model in (transformer, vae):
        model.to(device, torch.float32).requires_grad_(False).eval()
    return transformer, vae


def encode_latents(vae: Any, clips: Tensor, batch: int = 8) -> tuple[Tensor, Tensor]:
    """`encode_pairs` by the autoencoder's own `encode`, which takes clips of any length."""
    return encode_pairs(vae, clips, lambda x: vae.encode(x).latent_dist.mode(), batch)


def encode_examples(vae: Any, base: Base, folder: Path, examples: list[CaptionedClip], size: tuple[int, int, int],
                    fps: float) -> AdaptData:  # fmt: skip
    """Everything a LoRA learns from, encoded once; size is (F, H, W)."""
    latents, condition = encode_latents(vae, load_clips(examples, *size, fps))
    captions = sorted({example.caption for example in examples})
    states = encoder_for(base, folder).encode(captions).states.to(vae.device)
    which = torch.tensor([captions.index(example.caption) for example in examples], device=vae.device)
    return AdaptData(latents[None], condition[None], states[None], which[None])


def adapt(
    clips: str | Path, base_folder: str | Path, output: str | Path, config: AdaptConfig, *,
    init: str | Path | None = None, size: tuple[int, int, int] = (17, 96, 96), fps: float = 8.0,
    device: str = "cpu", on_step: Callable[[int, Tensor], None] | None = None,
) -> Lora:  # fmt: skip
    """Trains a LoRA on the clips of a folder and writes it in the default format.

    Args:
        base_folder: diffusers pipeline folder, or "world".
        init: a LoRA to begin from; truncated by its singular values where its rank is larger than the configuration's.
        size: (F, H, W) every clip is cut to; F is a multiple of 4 plus 1, H and W multiples of the base's factor.

    Raises:
        InputError: clips, base or init that cannot be used.
    """
    base, reader = open_base(str(base_folder))
    if reader is None:
        raise InputError(f"{base_folder} is a name without weights; give the folder of its diffusers pipeline")
    if base.family != "wan" or len(base.experts) > 1:
        raise InputError(f"{base_folder}: {base.name} cannot be fine-tuned here; use a Wan base of one transformer")
    examples = list_clips(clips)
    start = None
    if init is not None:
        given = read_lora(init, base)
        start = [given if given.rank <= config.rank else blend([(given, 1.0)], config.rank).lora]
    root = Path(reader.folder)
    transformer, vae = load_models(root, device)
    if size[0] % 4 != 1 or size[1] % vae.spatial_compression_ratio or size[2] % vae.spatial_compression_ratio:
        raise InputError(f"clips of {size}: want 4 n + 1 frames and sides that are multiples of "
                         f"{vae.spatial_compression_ratio}")  # fmt: skip
    data = encode_examples(vae, base, root, examples, size, fps)
    loras = GroupedLoras(base, 1, config.rank, seed=config.seed, device=device, init=start)
    losses = train_loras(transformer, loras, data, config, on_step=on_step)
    lora = loras.lora(0)
    metadata = {"p2e.version": __version__, "p2e.base": base.name, "p2e.steps": str(config.steps),
                "p2e.loss": f"{losses.item():.5f}", "p2e.init": "" if init is None else Path(init).name}  # fmt: skip
    write_lora(output, lora, base, metadata=metadata)
    return lora
