"""LTX-Video: the first latent frame is the clean one and its tokens are told time 0.

Shapes: B clips, S = f h w tokens (one a latent cell, at the released patch size of 1).
"""

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from p2e.adapt.families.adapter import Adapter, CaptionEncoder, Record, mode
from p2e.adapt.families.prompting import text_pipeline
from p2e.errors import FormatError

__all__ = ["LTXAdapter"]


class LTXAdapter(Adapter):
    """A base of LTXVideoTransformer3DModel and AutoencoderKLLTXVideo."""

    vae_class = "AutoencoderKLLTXVideo"
    size, rate = (121, 512, 704), 25.0
    first_is_given = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if self.model.get("patch_size", 1) != 1 or self.model.get("patch_size_t", 1) != 1:
            raise FormatError(
                f"{self.folder}: a transformer of patches larger than a latent cell cannot be trained here"
            )

    @property
    def patch(self) -> int:
        return 1

    def encode_clip(self, encoders: Mapping[str, Any], video: Tensor, first: Image.Image) -> Record:
        vae = encoders["vae"]
        mean, std = (x.float().view(1, -1, 1, 1, 1) for x in (vae.latents_mean, vae.latents_std))
        return {
            "latents": ((mode(vae, video) - mean) / std)[0],
            "first": ((mode(vae, video[:, :, :1]) - mean) / std)[0],
        }

    def load_text(self, device: str | torch.device) -> CaptionEncoder:
        pipe = text_pipeline("LTXImageToVideoPipeline", self.folder, self.text_dtype, device)

        def encode(caption: str, _first: Image.Image | None) -> Record:
            states, mask, _, _ = pipe.encode_prompt(caption, do_classifier_free_guidance=False, device=device)
            return {"text": states[0], "mask": mask[0]}

        return encode

    def predict(self, transformer: Any, noisy: Tensor, timestep: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        frames, height, width = noisy.shape[2:]
        hidden = torch.cat([batch["first"].float(), noisy[:, :, 1:]], dim=2)
        later = torch.arange(frames, device=noisy.device).repeat_interleave(height * width) > 0
        given = transformer.dtype
        answer = transformer(
            hidden_states=hidden.flatten(2).mT.to(given), encoder_hidden_states=batch["text"].to(given),
            timestep=timestep[:, None] * later, encoder_attention_mask=batch["mask"], num_frames=frames, height=height,
            width=width, rope_interpolation_scale=(self.frame_step / self.fps, self.spatial_ratio, self.spatial_ratio),
            return_dict=False,
        )[0]  # fmt: skip
        return answer.mT.unflatten(2, (frames, height, width))
