"""Settings of the deployments that need heavy libraries; read where those are not there."""

from pydantic import Field

from p2e.config import BindingConfig, Settings

__all__ = ["PredictorSettings", "RendererSettings"]


class PredictorSettings(Settings):
    """What predicts, and how.

    Attributes:
        base: folder of the base model's weights, or world.
        checkpoint: folder of the hypernetwork, or world.
        device: cpu or cuda.
        binding: hold the half of the work that does not depend on the prompt; None computes everything for each prompt.
        bindings: folder where bindings are kept from one start to the next.
        most_at_once: prompts in one pass.
        wait_s: how long a prompt waits for others to share its pass.
        max_rank: of a blend; a larger one is truncated to it. The renderer's slot must hold it.
    """

    base: str = "world"
    checkpoint: str = "world"
    device: str = "cpu"
    binding: BindingConfig | None = BindingConfig()
    bindings: str | None = None
    most_at_once: int = Field(default=8, ge=1)
    wait_s: float = Field(default=0.005, ge=0)
    max_rank: int = Field(default=64, ge=1)


class RendererSettings(Settings):
    """What renders, and how.

    Attributes:
        base: a diffusers pipeline folder of the base, or world.
        device: cpu or cuda.
        dtype: of the transformer.
        compile: compile its blocks; swaps of LoRAs do not recompile.
        attention: backend of diffusers' attention; None is PyTorch's choice.
        fp8: matrix products of its blocks in float8.
        max_rank: of the LoRA slot.
        held_gb: 1e9 bytes of LoRAs kept in memory.
        scale: whole factor by which clips are enlarged in the file.
        most_s: how long a job may take before it is given up.
    """

    base: str = "world"
    device: str = "cpu"
    dtype: str = Field(default="float32", pattern="^(float32|bfloat16)$")
    compile: bool = False
    attention: str | None = None
    fp8: bool = False
    max_rank: int = Field(default=64, ge=1)
    held_gb: float = Field(default=4.0, gt=0)
    scale: int = Field(default=1, ge=1, le=8)
    most_s: float = Field(default=1800, gt=0)
