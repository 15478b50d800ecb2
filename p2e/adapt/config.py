"""Settings of LoRA fine-tuning. The defaults are the paper's recipe: cosine 1e-4 to 1e-5, 1% warm-up, 1,000 steps."""

from typing import Literal

from pydantic import Field

from p2e.config import Settings

__all__ = ["AdaptConfig"]


class AdaptConfig(Settings):
    """Fine-tuning of one LoRA, or of a group of LoRAs side by side."""

    rank: int = Field(default=32, ge=1)
    steps: int = Field(default=1000, ge=1)
    batch: int = Field(default=1, ge=1, description="clips a LoRA and step")
    learning_rate: float = Field(default=1e-4, gt=0)
    final_rate: float = Field(default=0.1, ge=0, le=1, description="the cosine's end as a share of learning_rate")
    warmup_fraction: float = Field(default=0.01, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0, description="largest L2 norm of one LoRA's gradient")
    sampling: Literal["logit_normal", "uniform"] = "logit_normal"
    shift: float = Field(default=3.0, gt=0, description="moves training times towards noise, as the scheduler's sigmas")
    shared_start: bool = Field(default=False, description="all LoRAs of a group start from one A")
    shared_draws: bool = Field(
        default=False,
        description="all LoRAs of a group meet the same numbers at random: "
        "which clip, time and noise, so that they differ by their clips alone",
    )
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    seed: int = 0
