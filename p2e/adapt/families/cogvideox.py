"""CogVideoX image-to-video: the first frame's latents stand beside the noisy ones, zeros after them.

Not flow matching: its scheduler has discrete steps and, as released, the answer is v. The 5B model of version 1.0 has
positions learned for one size of picture, so its clips all have that. Version 1.5 patches two latent frames into one
token; an odd number of them is made even by repeating the first.

Shapes: the transformer takes [B, f, 2 Z, h, w], frames before channels.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from p2e.adapt.families.adapter import Adapter, CaptionEncoder, Record, mode
from p2e.adapt.families.prompting import text_pipeline
from p2e.errors import FormatError

__all__ = ["CogVideoXAdapter"]

OFFSET = 2.0  # what version 1.5 is told besides the time


class CogVideoXAdapter(Adapter):
    """A base of CogVideoXTransformer3DModel and AutoencoderKLCogVideoX."""

    vae_class = "AutoencoderKLCogVideoX"
    size, rate = (49, 480, 720), 8.0
    sampling = "uniform"  # as it was trained, over all steps alike

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        channels, z = self.model.get("in_channels", 16), self.vae_plan.config.latent_channels
        if channels != 2 * z:
            raise FormatError(
                f"{self.folder}: this CogVideoX takes {channels} channels over latents of {z}, so it cannot start from "
                "an image; give an image-to-video one"
            )
        self.patch_t = self.model.get("patch_size_t")
        self._rotary = lru_cache(maxsize=64)(self._make_rotary)

    @property
    def kind(self) -> str:
        return f"cogvideox {self.patch_t}"

    @property
    def frame_step(self) -> int:
        return int(self.vae_plan.config.temporal_compression_ratio)

    @property
    def spatial_ratio(self) -> int:
        return 2 ** (len(self.vae_plan.config.block_out_channels) - 1)

    @property
    def only_side(self) -> tuple[int, int] | None:
        if not self.model.get("use_learned_positional_embeddings"):
            return None
        return (
            self.model.get("sample_height", 60) * self.spatial_ratio,
            self.model.get("sample_width", 90) * self.spatial_ratio,
        )

    def shift(self, frames: int, height: int, width: int) -> float:
        return 1.0  # its scheduler has no such thing

    def encode_clip(self, encoders: Mapping[str, Any], video: Tensor, first: Image.Image) -> Record:
        vae = encoders["vae"]
        scale = vae.config.scaling_factor
        image_scale = 1 / scale if vae.config.invert_scale_latents else scale
        latents = scale * mode(vae, video)[0]
        added = 0 if self.patch_t is None else -latents.shape[1] % self.patch_t
        latents = torch.cat([latents[:, :1].expand(-1, added, -1, -1), latents], dim=1)
        return {"latents": latents, "first": image_scale * mode(vae, video[:, :, :1])[0]}

    def load_text(self, device: str | torch.device) -> CaptionEncoder:
        pipe = text_pipeline("CogVideoXImageToVideoPipeline", self.folder, self.text_dtype, device)
        # Learned positions count the text in, so its length is not free.
        length = self.model.get("max_text_seq_length", 226)

        def encode(caption: str, _first: Image.Image | None) -> Record:
            states, _ = pipe.encode_prompt(
                caption, do_classifier_free_guidance=False, max_sequence_length=length, device=device
            )
            return {"text": states[0]}

        return encode

    def predict(self, transformer: Any, noisy: Tensor, timestep: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        given, frames = transformer.dtype, noisy.shape[2]
        still = torch.nn.functional.pad(batch["first"].float(), (0, 0, 0, 0, 0, frames - 1))
        hidden = torch.cat([noisy, still], dim=1).transpose(1, 2)
        rotary = None
        if transformer.config.use_rotary_positional_embeddings:
            rotary = self._rotary(frames, *noisy.shape[3:], noisy.device)
        offset = None
        if transformer.config.ofs_embed_dim is not None:
            offset = noisy.new_full((1,), OFFSET).to(given)
        answer = transformer(
            hidden_states=hidden.to(given), encoder_hidden_states=batch["text"].to(given), timestep=timestep,
            ofs=offset, image_rotary_emb=rotary, return_dict=False,
        )[0]  # fmt: skip
        return answer.transpose(1, 2)

    def _make_rotary(self, frames: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rotary positions of a grid of latent cells, as the pipeline makes them."""
        from diffusers.models.embeddings import get_3d_rotary_pos_embed
        from diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video import get_resize_crop_region_for_grid

        p = self.patch
        grid = (height // p, width // p)
        known = (self.model.get("sample_height", 60) // p, self.model.get("sample_width", 90) // p)
        head_dim: int = self.model.get("attention_head_dim", 64)
        if self.patch_t is None:
            crops: Any = get_resize_crop_region_for_grid(grid, known[1], known[0])
            made: Any = get_3d_rotary_pos_embed(
                embed_dim=head_dim, crops_coords=crops, grid_size=grid, temporal_size=frames, device=device
            )
        else:
            options: Any = {"crops_coords": None, "grid_type": "slice", "max_size": known}
            made = get_3d_rotary_pos_embed(
                embed_dim=head_dim, grid_size=grid, temporal_size=-(-frames // self.patch_t), device=device, **options
            )
        return made
