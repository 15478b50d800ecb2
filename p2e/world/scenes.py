"""The scenes that clips start from: a procedural background and one to three sprites.

Five categories follow the paper's suite: one person, several, moving background, objects, animals. A scene is a row of
a batch of numbers; `p2e.world.draw` makes the pictures. What moves without an effect moves alike in every clip: stripes
and blobs slide past, at one speed, and only they. So a clip's truth follows from its first frame and its effect.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from p2e.world.sprites import SUBJECTS

__all__ = ["CATEGORIES", "EVALUATION_SCENES", "Scenes", "evaluation_scenes", "sample_scenes"]

CATEGORIES = ("single", "several", "moving background", "objects", "animals")
EVALUATION_SCENES = 76  # as many as the paper's suite has
EVALUATION_SEED = 7_600_000_001  # beyond 32 bits: no training seed, all of which are smaller, draws the same numbers
DRIFT = 0.7  # how far a moving background slides in a clip, half frames

# Background kinds as rows of `Scenes.pattern`. Two waves at right angles make a checkerboard, a sharp ramp a horizon.
KINDS: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("plain", (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.3)),
    ("gradient", (0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.2)),
    ("horizon", (3.0, 0.0, 0.0, 0.12, 0.0, 1.6, 0.0, 7.0)),
    ("checks", (6.5, 6.5, math.pi / 2, 0.7, 0.7, 0.0, 0.0, 2.0)),
    ("disc", (0.0, 0.0, 0.0, 0.0, 0.0, 0.2, 1.5, 2.5)),
    ("stripes", (7.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 2.5)),
    ("blobs", (4.0, 3.1, 1.9, 0.7, 0.7, 0.2, 0.0, 1.6)),
)
RESTING = 5  # the first kinds stand still, the others slide


@dataclass(frozen=True)
class Scenes:
    """B scenes. Lengths in half frames (the frame spans -1 to 1, y points down); colours 0..1.

    Attributes:
        pattern: [B, 8] frequency 1, frequency 2, angle between, share of wave 1, of wave 2, of the ramp, of the disc,
            sharpness.
        angle: [B] direction of the pattern; phase: [B, 2] of its waves.
        colours: [B, 3, 3] two colours of the pattern and one that shades towards the lower edge.
        drift: [B] how far the background slides in a clip.
        sprite: [B, 3] ids of the sprites; shown: [B, 3] 0 or 1; the first is the subject.
        centre: [B, 3, 2] x, y; size: [B, 3] half the side of a sprite's cell.
        category: [B] index into `CATEGORIES`.
    """

    pattern: Tensor
    angle: Tensor
    phase: Tensor
    colours: Tensor
    drift: Tensor
    sprite: Tensor
    shown: Tensor
    centre: Tensor
    size: Tensor
    category: Tensor

    def __len__(self) -> int:
        return self.sprite.shape[0]

    def to(self, device: torch.device | str) -> "Scenes":
        return Scenes(*(getattr(self, field.name).to(device) for field in fields(self)))

    def select(self, index: Tensor | slice) -> "Scenes":
        """The scenes at `index`."""
        return Scenes(*(getattr(self, field.name)[index] for field in fields(self)))


def _colours(count: int, generator: torch.Generator) -> Tensor:
    """Three colours a scene [B, 3, 3]: soft, apart in lightness, so that no pattern vanishes."""
    hue = torch.rand(count, 1, 1, generator=generator, device=generator.device)
    hue = hue + 0.35 * torch.rand(count, 3, 1, generator=generator, device=generator.device)
    thirds = torch.tensor([0.0, 1 / 3, 2 / 3], device=generator.device)
    pure = 0.5 + 0.5 * torch.cos(2 * math.pi * (hue - thirds))  # [B, 3 colours, 3 channels]
    lightness = torch.tensor([0.72, 0.42, 0.3], device=generator.device).view(1, 3, 1)
    lightness = lightness + 0.16 * torch.rand(count, 3, 1, generator=generator, device=generator.device)
    chroma = 0.25 + 0.4 * torch.rand(count, 3, 1, generator=generator, device=generator.device)
    return (lightness + chroma * (pure - 0.5)).clamp(0.05, 0.95)


def sample_scenes(
    n: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    image_size: int = 96,
    category: Tensor | None = None,
) -> Scenes:
    """Draws `n` scenes.

    Args:
        generator: every number comes from it, on its own device.
        image_size: side of the picture the scenes will be drawn at, pixels; smaller pictures get coarser patterns.
        category: [n] indices into `CATEGORIES`, or None to draw them too.
    """
    where = generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=where)

    def pick(ids: tuple[int, ...], *shape: int) -> Tensor:
        drawn = torch.randint(0, len(ids), shape, generator=generator, device=where)
        return torch.tensor(ids, device=where)[drawn]

    drawn_category = torch.randint(0, len(CATEGORIES), (n,), generator=generator, device=where)
    category = drawn_category if category is None else category.to(where)
    kind = torch.randint(0, RESTING, (n,), generator=generator, device=where)
    sliding = torch.randint(RESTING, len(KINDS), (n,), generator=generator, device=where)
    moving = category == CATEGORIES.index("moving background")
    kind = torch.where(moving, sliding, kind)
    pattern = torch.tensor([row for _, row in KINDS], device=where)[kind]
    pattern[:, :2] *= (0.85 + 0.3 * uniform(n, 1)) * min(1.0, image_size / 96)
    # A horizon lies flat and a disc sits high; the rest turn freely, but a pattern that slides is never level.
    angle = uniform(n) * math.pi
    angle = torch.where(moving, (angle - math.pi / 2) * 0.6, angle)
    angle = torch.where(kind == 2, math.pi / 2 + (uniform(n) - 0.5) * 0.3, angle)

    several = category == CATEGORIES.index("several")
    person, animal, thing = (pick(SUBJECTS[name], n, 3) for name in ("person", "animal", "object"))
    is_object = category == CATEGORIES.index("objects")
    is_animal = category == CATEGORIES.index("animals")
    any_subject = pick(tuple(i for ids in SUBJECTS.values() for i in ids), n, 3)
    sprite = torch.where(is_object[:, None], thing, torch.where(is_animal[:, None], animal, person))
    sprite = torch.where((several | moving)[:, None], any_subject, sprite)
    crowd = several & (uniform(n) < 0.5)
    shown = torch.stack([torch.ones(n, device=where), several.float(), crowd.float()], dim=1)

    # The subject stands near the middle; of two, left and right; a third behind them, higher.
    x, y = (uniform(n) - 0.5) * 0.36, 0.12 + (uniform(n) - 0.5) * 0.3
    size = 0.44 + 0.1 * uniform(n)
    offset = 0.4 + 0.06 * uniform(n)
    x = torch.where(several, -offset, x)
    size = torch.where(several, size * 0.76, size)
    jitter = (uniform(n, 2) - 0.5) * 0.1
    centre = torch.stack(
        [
            torch.stack([x, y], -1),
            torch.stack([offset + jitter[:, 0], y], -1),
            torch.stack([jitter[:, 1], y - 0.56], -1),
        ],
        dim=1,
    )
    scenes = Scenes(
        pattern=pattern,
        angle=angle,
        phase=uniform(n, 2) * 2 * math.pi,
        colours=_colours(n, generator),
        drift=torch.where(moving, DRIFT, 0.0),
        sprite=sprite,
        shown=shown,
        centre=centre,
        size=torch.stack([size, size, size * 0.8], dim=1),
        category=category,
    )
    return scenes.to(device)


def evaluation_scenes(device: torch.device | str = "cpu") -> Scenes:
    """The 76 scenes of every evaluation: the same on every machine, spread evenly over the categories."""
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    category = torch.arange(EVALUATION_SCENES) % len(CATEGORIES)
    return sample_scenes(EVALUATION_SCENES, generator, device, category=category)
