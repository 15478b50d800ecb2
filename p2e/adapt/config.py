"""Settings of LoRA fine-tuning. The defaults are the paper's recipe: cosine 1e-4 to 1e-5, 1% warm-up, 1,000 steps."""

from typing import Literal, Self

from pydantic import Field, model_validator

from p2e.config import Settings

__all__ = ["AdaptConfig", "FineTuneConfig"]


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


class FineTuneConfig(AdaptConfig):
    """Fine-tuning of one LoRA of any base on clips of a folder: `p2e adapt`.

    What is not given takes the base's own: sampling, shift, fps and buckets come from its pipeline folder.
    """

    sites: tuple[str, ...] = Field(
        default=(),
        description="which sites to adapt: globs over site names or module types ('*.self_attn.q', 'cross_attn.*'), "
        "or 're:' and a regular expression; none is all",
    )
    expert: Literal["both", "high_noise", "low_noise"] = Field(
        default="both", description="which transformer of a base of two is trained; each learns its side of the times"
    )
    accumulate: int = Field(default=1, ge=1, description="batches whose gradients make one step")
    checkpointing: bool | None = Field(
        default=None, description="recompute activations on the way back; None does so for a billion weights and more"
    )
    weights: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="type of the frozen base and its text encoder; auto is bfloat16 for a billion weights and more",
    )
    buckets: tuple[tuple[int, int, int], ...] | None = Field(
        default=None,
        description="(frames, height, width) that clips are cut to, each clip to the one nearest to it; "
        "None finds them from the clips",
    )
    frames: int | None = Field(default=None, ge=1, description="longest length of the buckets that are found")
    pixels: int | None = Field(default=None, ge=256, description="height x width of the buckets that are found, about")
    fps: float | None = Field(default=None, gt=0, le=240, description="frames a second that clips are resampled to")
    guidance: float = Field(default=1.0, ge=0, description="what a base with embedded guidance is told")
    tiling: bool = Field(default=False, description="encode clips in tiles, which takes less memory")
    save_every: int = Field(default=100, ge=0, description="steps between two saves of the run's state; 0 is never")
    cache: str | None = Field(
        default=None, description="folder of encoded clips and captions; the user's cache if None"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.weights == "bfloat16" and self.precision == "float32":
            raise ValueError("weights: bfloat16 cannot be trained with precision: float32; set precision: bfloat16")
        return self
