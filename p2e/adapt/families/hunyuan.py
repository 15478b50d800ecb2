"""HunyuanVideo image-to-video, in its two forms: the clean first latent frame put in place of the noisy one
(token_replace), or beside the noisy latents with a mask (latent_concat).

Its language model reads the caption together with the first frame; a second encoder gives one pooled vector.
"""

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from p2e.adapt.families.adapter import Adapter, CaptionEncoder, Record, mode
from p2e.adapt.families.prompting import text_pipeline
from p2e.errors import FormatError

__all__ = ["HunyuanAdapter"]

# Every so manieth state of the image is read; which, depends on the form.
INTERLEAVE = {"latent_concat": 2, "token_replace": 4}


class HunyuanAdapter(Adapter):
    """A base of HunyuanVideoTransformer3DModel and AutoencoderKLHunyuanVideo."""

    vae_class = "AutoencoderKLHunyuanVideo"
    size, rate = (129, 720, 1280), 24.0
    text_folders = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "image_processor")
    text_reads_image = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.form = str(self.model.get("image_condition_type"))
        if self.form not in INTERLEAVE:
            raise FormatError(
                f"{self.folder}: this HunyuanVideo cannot start from an image; give an image-to-video one"
            )
        self.first_is_given = self.form == "token_replace"

    @property
    def kind(self) -> str:
        return f"hunyuan {self.form}"

    def encode_clip(self, encoders: Mapping[str, Any], video: Tensor, first: Image.Image) -> Record:
        vae = encoders["vae"]
        scale = vae.config.scaling_factor
        return {"latents": scale * mode(vae, video)[0], "first": scale * mode(vae, video[:, :, :1])[0]}

    def load_text(self, device: str | torch.device) -> CaptionEncoder:
        pipe = text_pipeline("HunyuanVideoImageToVideoPipeline", self.folder, self.text_dtype, device)

        def encode(caption: str, first: Image.Image | None) -> Record:
            states, pooled, mask = pipe.encode_prompt(
                image=first, prompt=caption, device=device, image_embed_interleave=INTERLEAVE[self.form]
            )
            return {"text": states[0], "mask": mask[0], "pooled": pooled[0]}

        return encode

    def predict(self, transformer: Any, noisy: Tensor, timestep: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        given, first = transformer.dtype, batch["first"].float()
        if self.form == "token_replace":
            hidden = torch.cat([first, noisy[:, :, 1:]], dim=2)
        else:
            later = noisy.shape[2] - 1
            still = torch.nn.functional.pad(first, (0, 0, 0, 0, 0, later))
            mask = torch.nn.functional.pad(torch.ones_like(first[:, :1]), (0, 0, 0, 0, 0, later))
            hidden = torch.cat([noisy, still, mask], dim=1)
        guidance = None
        if transformer.config.guidance_embeds:
            guidance = torch.full_like(timestep, 1000 * self.config.guidance).to(given)
        return transformer(
            hidden_states=hidden.to(given), timestep=timestep, encoder_hidden_states=batch["text"].to(given),
            encoder_attention_mask=batch["mask"].to(given), pooled_projections=batch["pooled"].to(given),
            guidance=guidance, return_dict=False,
        )[0]  # fmt: skip
