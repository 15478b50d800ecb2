"""The settings that each base was made for."""

from p2e.bases.base import Base
from p2e.config import RenderConfig

__all__ = ["render_defaults"]

WORLD_TEXT_DIM = 384  # bases of the world's form, at any size
WAN_NEGATIVE = (
    "static, overexposed, blurred details, subtitles, worst quality, low quality, ugly, deformed, still picture"
)
WAN = RenderConfig(height=480, width=832, frames=81, fps=16, steps=40, guidance=5.0, negative_prompt=WAN_NEGATIVE)
DEFAULTS = {
    "world": RenderConfig(),
    "wan2.2-i2v-a14b": WAN.model_copy(update={"guidance": 3.5}),
    "wan2.2-ti2v-5b": WAN.model_copy(update={"height": 704, "width": 1280, "frames": 121, "fps": 24, "steps": 50}),
}


def render_defaults(base: Base) -> RenderConfig:
    """The settings that a base was made for: 96 x 96 x 17 frames for the world, 480 x 832 x 81 for Wan."""
    return DEFAULTS.get(base.name, DEFAULTS["world"] if base.text_dim == WORLD_TEXT_DIM else WAN)
