"""What every family has in common: the folder of a diffusers pipeline, opened part by part.

A clip and its caption become *records*, named tensors without a batch axis, that are cached on disk; a batch is
records stacked. What a record holds is the family's own affair: `latents` is always there, the normalised latents of
the clip, [Z, f, h, w].

Shapes: B clips, F frames, H x W pixels, Z latent channels, f latent frames, h x w latent cells.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from p2e.adapt.config import FineTuneConfig
from p2e.adapt.objective import Objective, objective_of, shift_of
from p2e.bases.base import Base
from p2e.errors import FormatError
from p2e.files import read_text

__all__ = ["Adapter", "CaptionEncoder", "Record", "mode", "read_json"]

Record = dict[str, Tensor]
CaptionEncoder = Callable[[str, Image.Image | None], Record]
"""(caption, first frame, for those that read it) -> its record."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a pipeline folder.

    Raises:
        FormatError: it is missing or no JSON object.
    """
    if not path.is_file():
        raise FormatError(f"{path.parent}: no {path.name}; give the whole folder of a diffusers pipeline")
    try:
        values = json.loads(read_text(path))
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise FormatError(f"{path}: is not a JSON object; download it again")
    return values


def mode(vae: Any, video: Tensor) -> Tensor:
    """The likeliest latents of videos [B, 3, F, H, W] in -1..1. Some pipelines draw them instead: this is the mean."""
    return vae.encode(video).latent_dist.mode().float()


class Adapter(ABC):
    """One base, as it is trained. Subclasses hold what differs between families.

    Attributes:
        vae_class: the autoencoder's class in diffusers.
        size: (F, H, W) that the base was made for, and `rate`, its frames per second.
        encoder_folders: the parts of the pipeline that a clip's record depends on.
        text_folders: those that a caption's record depends on.
        text_reads_image: a caption's record depends on the first frame too.
        first_is_given: the first latent frame is the condition itself, so nothing is to be learned there.
        finds_buckets: sizes are found from the clips where the user gives none; else they are cut to `size`.
        sampling: how times are drawn where the user does not say.
    """

    vae_class: str
    size: tuple[int, int, int]
    rate: float
    encoder_folders: tuple[str, ...] = ("vae",)
    text_folders: tuple[str, ...] = ("text_encoder", "tokenizer")
    text_reads_image = False
    first_is_given = False
    finds_buckets = True
    sampling = "logit_normal"

    def __init__(self, base: Base, folder: Path, config: FineTuneConfig) -> None:
        self.base, self.folder, self.config = base, folder, config
        self.index = read_json(folder / "model_index.json")
        self.model = read_json(folder / base.subfolders[base.experts[0]] / "config.json")

    @property
    def kind(self) -> str:
        """What tells records apart that the same autoencoder made of the same clip."""
        return self.base.family

    @property
    def fps(self) -> float:
        return self.config.fps or self.rate

    # --- the parts of the folder

    def part(self, library: str, name: str, subfolder: str, **options: Any) -> Any:
        """A model of the folder in safetensors, frozen.

        Raises:
            FormatError: it cannot be read.
        """
        import importlib

        cls = getattr(importlib.import_module(library), name)
        options = {"local_files_only": True, **options}
        try:
            return cls.from_pretrained(self.folder / subfolder, **options)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
            cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise FormatError(f"{self.folder / subfolder}: not a readable {name} ({cause[:160]})") from None

    def frozen(self, library: str, name: str, subfolder: str, dtype: torch.dtype, device: str | torch.device) -> Any:
        model = self.part(library, name, subfolder, dtype=dtype, use_safetensors=True)
        return model.to(device).requires_grad_(False).eval()

    @cached_property
    def vae_plan(self) -> Any:
        """The autoencoder without its weights, for its sizes."""
        import diffusers

        config = read_json(self.folder / "vae" / "config.json")
        try:
            with torch.device("meta"):
                return getattr(diffusers, self.vae_class).from_config(config)
        except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
            raise FormatError(f"{self.folder / 'vae'}: not a {self.vae_class} ({str(error)[:120]})") from None

    @cached_property
    def scheduler(self) -> Any:
        entry = self.index.get("scheduler") or [None, None]
        name = entry[1]
        import diffusers

        if not isinstance(name, str) or not name.endswith("Scheduler") or not hasattr(diffusers, name):
            raise FormatError(
                f"{self.folder}: model_index.json names no scheduler of diffusers; save the pipeline again"
            )
        return self.part("diffusers", name, "scheduler")

    @cached_property
    def objective(self) -> Objective:
        return objective_of(self.scheduler, self.folder)

    # --- sizes

    @property
    def frame_step(self) -> int:
        """A clip has a multiple of it, plus one, of frames."""
        return int(self.vae_plan.temporal_compression_ratio)

    @property
    def spatial_ratio(self) -> int:
        return int(self.vae_plan.spatial_compression_ratio)

    @property
    def patch(self) -> int:
        """Latent cells along a side that make one token."""
        return int(self.model.get("patch_size", 2))

    @property
    def side_step(self) -> int:
        """Heights and widths are multiples of it."""
        return self.spatial_ratio * self.patch

    @property
    def only_side(self) -> tuple[int, int] | None:
        """(H, W) where the base takes no other."""
        return None

    def shift(self, frames: int, height: int, width: int) -> float:
        """How far times are moved towards noise for clips of that size, where the user does not say."""
        cells = ((frames - 1) // self.frame_step + 1) * (height // self.spatial_ratio) * (width // self.spatial_ratio)
        return shift_of(self.scheduler.config, cells)

    @property
    def base_weights(self) -> int:
        """About how many weights one transformer has: those of its sites."""
        return sum(site.d_out * site.d_in for site in self.base.sites) // len(self.base.experts)

    @property
    def boundary(self) -> float | None:
        """The time from which on the first of two transformers is the one in charge."""
        return None

    # --- encoding

    def load_encoders(self, device: str | torch.device) -> dict[str, Any]:
        """The models that `encode_clip` needs, in float32."""
        vae = self.frozen("diffusers", self.vae_class, "vae", torch.float32, device)
        if self.config.tiling:
            vae.enable_tiling()
        return {"vae": vae}

    @abstractmethod
    def encode_clip(self, encoders: Mapping[str, Any], video: Tensor, first: Image.Image) -> Record:
        """The record of one clip, video [1, 3, F, H, W] in -1..1 on the device of the encoders; `first` is frame 0."""

    @abstractmethod
    def load_text(self, device: str | torch.device) -> CaptionEncoder:
        """The base's own text encoder."""

    @property
    def text_dtype(self) -> torch.dtype:
        """What text encoders are held in."""
        return torch.float32 if self.config.weights == "float32" else torch.bfloat16

    # --- training

    def load_transformer(self, expert: str | None, dtype: torch.dtype, device: str | torch.device) -> Any:
        return self.frozen("diffusers", self.base.diffusers_class, self.base.subfolders[expert], dtype, device)

    @abstractmethod
    def predict(self, transformer: Any, noisy: Tensor, timestep: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The transformer's answer [B, Z, f, h, w], called as the base's pipeline calls it."""

    def loss(self, transformer: Any, batch: Mapping[str, Tensor], times: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of the answer of every clip, [B], in float32."""
        latents, objective = batch["latents"].float(), self.objective
        noisy = objective.mix(latents, noise, times)
        answer = self.predict(transformer, noisy, objective.timestep(times), batch).float()
        error = (answer - objective.target(latents, noise, times)).square()
        if self.first_is_given and error.shape[2] > 1:
            error = error[:, :, 1:]
        return error.flatten(1).mean(1)
