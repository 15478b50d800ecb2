"""Several different first frames in one call of diffusers' pipeline."""

from typing import Any

import torch
from diffusers import WanImageToVideoPipeline

__all__ = ["BatchPipeline"]


class BatchPipeline(WanImageToVideoPipeline):
    """The pipeline for N images [N, 3, H, W] with N prompts and N generators.

    The original takes one image for all prompts of a batch: it repeats whatever condition the image gave N times.
    Bases that read CLIP states of the image repeat those too; they are rendered one by one.
    """

    def prepare_latents(self, image: Any, batch_size: int, *args: Any) -> Any:  # pyright: ignore
        """Noise and condition of each image by itself, then stacked."""
        prepare: Any = super().prepare_latents
        *size, generators, latents, last_image = args
        items = [prepare(image[i : i + 1], 1, *size, generators[i], latents, last_image) for i in range(batch_size)]
        noise, condition, *masks = zip(*items, strict=True)
        return torch.cat(noise), torch.cat(condition), *(equal[0] for equal in masks)
