"""Wan 2.1 and 2.2, and the embedded world, which has their form.

Three ways to the first frame, told apart as the pipeline does:
- channels: "first frame, then mid grey" through the autoencoder stands beside the noisy latents with a mask (2.1 and
  2.2 image-to-video, the world); 2.1 reads CLIP states of the frame as well;
- tokens: the first latent frame is the clean one, and its tokens are told time 0 (2.2 TI2V);
- none: text-to-video.
"""

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from p2e.adapt.families.adapter import Adapter, CaptionEncoder, Record, mode
from p2e.adapt.flow import MASK_CHANNELS, conditioned
from p2e.adapt.latents import normalise
from p2e.errors import FormatError
from p2e.render.defaults import render_defaults
from p2e.text import encoder_for

__all__ = ["WanAdapter"]

WORLD_TEXT_DIM = 384


class WanAdapter(Adapter):
    """A base of WanTransformer3DModel and AutoencoderKLWan, one transformer or two."""

    vae_class = "AutoencoderKLWan"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        defaults = render_defaults(self.base)
        self.size, self.rate = (defaults.frames, defaults.height, defaults.width), defaults.fps
        channels, z = self.model.get("in_channels", 16), self.vae_plan.config.z_dim
        self.clip = self.model.get("image_dim") is not None
        if self.index.get("expand_timesteps") and channels == z:
            self.form = "tokens"
        elif channels == 2 * z + MASK_CHANNELS:
            self.form = "channels"
        elif channels == z:
            self.form = "none"
        else:
            raise FormatError(
                f"{self.folder}: a transformer of {channels} input channels over latents of {z} is of no form that can "
                f"be trained; {z} or {2 * z + MASK_CHANNELS} are"
            )
        self.first_is_given = self.form == "tokens"
        if self.clip:
            self.encoder_folders = ("vae", "image_encoder", "image_processor")
        if self.base.text_dim == WORLD_TEXT_DIM:
            self.text_folders = ()  # its encoder comes with the package
            self.finds_buckets = False

    @property
    def kind(self) -> str:
        return f"wan {self.form} {self.clip}"

    @property
    def frame_step(self) -> int:
        return int(self.vae_plan.config.scale_factor_temporal)

    @property
    def spatial_ratio(self) -> int:
        return int(self.vae_plan.config.scale_factor_spatial)

    @property
    def patch(self) -> int:
        return int(self.model.get("patch_size", (1, 2, 2))[1])

    @property
    def boundary(self) -> float | None:
        if len(self.base.experts) == 1:
            return None
        ratio = self.index.get("boundary_ratio")
        if not isinstance(ratio, float) or not 0 < ratio < 1:
            raise FormatError(
                f"{self.folder}: model_index.json has no boundary_ratio, which tells its two transformers' times; save "
                "the pipeline again"
            )
        return ratio

    def load_encoders(self, device: str | torch.device) -> dict[str, Any]:
        encoders = super().load_encoders(device)
        if self.clip:
            encoders["image_encoder"] = self.frozen(
                "transformers", "CLIPVisionModel", "image_encoder", torch.float32, device
            )
            encoders["image_processor"] = self.part("transformers", "CLIPImageProcessor", "image_processor")
        return encoders

    def encode_clip(self, encoders: Mapping[str, Any], video: Tensor, first: Image.Image) -> Record:
        vae = encoders["vae"]
        record = {"latents": normalise(vae, mode(vae, video))[0]}
        if self.form == "channels":
            still = torch.zeros_like(video)
            still[:, :, :1] = video[:, :, :1]
            record["condition"] = normalise(vae, mode(vae, still))[0]
        elif self.form == "tokens":
            record["first"] = normalise(vae, mode(vae, video[:, :, :1]))[0]
        if self.clip:
            pixels = encoders["image_processor"](images=first, return_tensors="pt").to(video.device)
            record["image"] = encoders["image_encoder"](**pixels, output_hidden_states=True).hidden_states[-2][0]
        return record

    def load_text(self, device: str | torch.device) -> CaptionEncoder:
        encoder = encoder_for(self.base, self.folder)
        # encoder_for keeps the world's; the large ones go where they are fast.
        model: Any = getattr(encoder, "model", None)
        if self.text_folders and model is not None:
            model.to(device, self.text_dtype)
        return lambda caption, _first: {"text": encoder.encode([caption]).states[0]}

    def predict(self, transformer: Any, noisy: Tensor, timestep: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        if self.form == "channels":
            hidden = conditioned(noisy, batch["condition"].float())
        elif self.form == "tokens":
            hidden = torch.cat([batch["first"].float(), noisy[:, :, 1:]], dim=2)
            rows = -(-noisy.shape[3] // self.patch) * -(-noisy.shape[4] // self.patch)
            later = torch.arange(noisy.shape[2], device=noisy.device).repeat_interleave(rows) > 0
            timestep = timestep[:, None] * later
        else:
            hidden = noisy
        # Time embeddings keep float32 in this class; its other weights say what the rest is given in.
        given = transformer.dtype
        image = batch["image"].to(given) if self.clip else None
        return transformer(
            hidden_states=hidden.to(given), timestep=timestep, encoder_hidden_states=batch["text"].to(given),
            encoder_hidden_states_image=image, return_dict=False,
        )[0]  # fmt: skip
