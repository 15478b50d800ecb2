"""Aesthetic quality as VBench computes it (Huang et al. 2024), by LAION's linear head over CLIP ViT-L/14.

Every frame; the tensor of 0..255 resized to 224 on its short side, bicubic without antialiasing and without a clamp,
cut about the centre, divided by 255 and normalised; unit vectors through the head; mean over frames, over 10. VBench
computes features in float16 on GPUs; here they are float32 everywhere. In percent, as papers print it; not bounded to
0..100.
"""

from typing import Any

import torch
from torch import Tensor

from eval.metrics.base import Context
from eval.metrics.clip_model import MEAN, STD, ClipModel
from p2e.config import Settings
from p2e.errors import ConfigError
from p2e.files import sha256
from p2e.render.video import Clip

__all__ = ["Aesthetic", "AestheticSettings"]

BATCH = 32
HEAD = "sa_0_4_vit_l_14_linear.pth of github.com/LAION-AI/aesthetic-predictor"


class AestheticSettings(Settings):
    """Settings.

    Attributes:
        weights: safetensors of CLIP ViT-L/14.
        head: the linear head, .pth or safetensors with weight [1, D] and bias [1].
    """

    weights: str
    head: str
    model: str = "ViT-L-14-quickgelu"


class Aesthetic:
    """See the module."""

    name = "aesthetic"

    def __init__(self, settings: AestheticSettings, device: str) -> None:
        self.clip = ClipModel(settings.model, settings.weights, device)
        self.weight, self.bias = (part.to(device) for part in read_head(settings.head))
        self.recipe = f"aesthetic/1 {settings.model} {self.clip.digest[:16]} head {sha256(settings.head)[:16]}"

    @torch.inference_mode()
    def score(self, clip: Clip, context: Context) -> tuple[float, dict[str, Any]]:
        frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)
        parts = [self.clip.images(prepared(part.float(), self.clip.size)) for part in frames.split(BATCH)]
        values = torch.cat(parts) @ self.weight[0] + self.bias[0]
        return float(10 * values.double().mean()), {"frames": len(clip)}


def prepared(frames: Tensor, size: int) -> Tensor:
    """[N, 3, H, W] of 0..255 -> [N, 3, size, size], normalised."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import center_crop, normalize, resize

    small = resize(frames, [size], InterpolationMode.BICUBIC, antialias=False)
    return normalize(center_crop(small, [size, size]) / 255, list(MEAN), list(STD))


def read_head(path: str) -> tuple[Tensor, Tensor]:
    """Weight [1, D] and bias [1].

    Raises:
        ConfigError: the file is missing or something else.
    """
    from safetensors.torch import load_file

    try:
        state = (
            load_file(path)
            if path.endswith(".safetensors")
            else torch.load(path, map_location="cpu", weights_only=True)
        )
        weight, bias = state["weight"].float(), state["bias"].float()
        if weight.shape[0] != 1 or bias.shape != (1,):
            raise ValueError(f"weight {tuple(weight.shape)}, bias {tuple(bias.shape)}")
        return weight, bias
    except Exception as error:  # torch, pickle and safetensors have errors of several kinds
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(f"{path}: not the head of the aesthetic score ({reason}); fetch {HEAD}") from None
