"""Settings of the stages that make the world: autoencoder, transformer, LoRA library."""

from typing import Literal

from pydantic import Field

from p2e.adapt.config import AdaptConfig
from p2e.config import Settings

__all__ = [
    "WorldBaseConfig", "WorldLibraryConfig", "WorldMeasureConfig", "WorldMomentsConfig", "WorldPrepareConfig",
    "WorldTextConfig", "WorldVaeConfig",
]  # fmt: skip


class WorldTextConfig(Settings):
    """The token states of the world's prompts leave nothing to choose."""


class WorldVaeConfig(Settings):
    """Training of the autoencoder on generic clips."""

    steps: int = Field(default=4200, ge=1)
    max_seconds: float | None = Field(default=None, gt=0, description="the schedule ends by then even if steps remain")
    batch: int = Field(default=32, ge=1, description="clips a worker and step")
    pool: int = Field(default=8192, ge=1, description="clips drawn beforehand, a worker")
    learning_rate: float = Field(default=1.2e-3, gt=0)
    warmup: int = Field(default=100, ge=0)
    kl_weight: float = Field(default=1e-7, ge=0)
    ema: float = Field(default=0.998, ge=0, lt=1)
    measured: int = Field(default=128, ge=1, description="unseen clips of motion, and as many of effects, for the PSNR")
    seed: int = 0


class WorldBaseConfig(Settings):
    """Training of the transformer on latents of generic clips with coarse captions."""

    steps: int = Field(default=7000, ge=1)
    max_seconds: float | None = Field(default=None, gt=0)
    batch: int = Field(default=256, ge=1, description="clips a worker and step")
    pool: int = Field(default=24576, ge=1, description="encoded clips kept, a worker")
    renew_every: int = Field(
        default=400, ge=0, description="steps after which 2,048 of them are drawn anew; 0 is never"
    )
    optimizer: Literal["adamw", "muon"] = Field(default="adamw", description="of the matrices of the blocks")
    learning_rate: float = Field(default=1.2e-3, gt=0)
    warmup: int = Field(default=200, ge=0)
    measured: int = Field(default=512, ge=1, description="unseen clips for the final loss")
    text_dropout: float = Field(default=0.1, ge=0, lt=1)
    shift: float = Field(default=2.0, gt=0, description="moves training times towards noise, as the scheduler's sigmas")
    ema: float = Field(default=0.999, ge=0, lt=1)
    seed: int = 1


class WorldAdaptConfig(AdaptConfig):
    """The recipe of the world's LoRAs, where it differs from the general one."""

    rank: int = Field(default=4, ge=1)
    batch: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    shift: float = Field(default=2.0, gt=0)
    shared_start: bool = True
    shared_draws: bool = True
    seed: int = 2


class WorldLibraryConfig(Settings):
    """One LoRA an effect, many effects in a grouped batch."""

    effects: int | None = Field(default=None, ge=1, description="only the first so many of the table")
    clips: int = Field(default=48, ge=1, description="clips an effect, drawn once: the paper had about 50")
    wordings: int = Field(default=12, ge=1, description="training paraphrases that a LoRA sees, the first so many")
    adapt: WorldAdaptConfig = WorldAdaptConfig()


class WorldPrepareConfig(Settings):
    """The canonical targets of the library."""

    rank: int = Field(default=4, ge=1, description="the hypernetwork's is the same: hypernet.hypernet.rank")


class WorldMomentsConfig(Settings):
    """Moments of the base's sites under the LoRAs of the training effects, on the clips that these were trained on."""

    clips: int = Field(default=8, ge=1, description="of each effect")
    effects: int | None = Field(default=None, ge=1, description="only the first so many")
    at_once: int = Field(default=8, ge=1, description="effects a batch")
    shift: float = Field(default=2.0, gt=0)
    seed: int = 7


class WorldMeasureConfig(Settings):
    """Which effects and columns are measured, and on what; see p2e.world.columns for the columns."""

    columns: tuple[str, ...] = ("still", "cap", "base", "lora")
    scenes: int = Field(default=8, ge=1, description="the first so many of the evaluation scenes")
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="of the noise; scores are means over them")
    prompts: Literal["last", "unseen"] = Field(
        default="last", description="the last prompt of an effect, or the mean over both that no training sees"
    )
    steps: int = Field(default=10, ge=1, description="denoising steps")
    effects: int | None = Field(default=None, ge=1, description="only the first so many of the table")
    every: int = Field(default=1, ge=1, description="of these, every so manieth")
    only: tuple[str, ...] = Field(default=(), description="of these, those with one of these names; none is all")
    resume: bool = Field(default=False, description="what the file holds already is not measured again")
    keep: tuple[str, ...] = Field(default=(), description="effects whose clips are kept as strips, clips/EFFECT/*.png")
    keep_scenes: int = Field(default=1, ge=1, description="the first so many scenes of them")
    library: WorldLibraryConfig = Field(
        default=WorldLibraryConfig(), description="how the LoRAs of init:N and lora:N are trained"
    )
