"""Contact sheets and single clips of the world's effects, to look at."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from p2e.errors import InputError
from p2e.files import atomic_path
from p2e.world.draw import draw_clips
from p2e.world.effects import EFFECTS, effect_index, sample_params
from p2e.world.motion import CAPTIONS, sample_motion
from p2e.world.scenes import Scenes, evaluation_scenes, sample_scenes
from p2e.world.sprites import load_atlas

__all__ = ["clip", "write_clip_sheet", "write_contact_sheet", "write_motion_sheet"]

LABEL = 12  # pixels above a row
GAP = 4


def clip(name: str, scene: int = 0, frames: int = 17, size: int = 96) -> Tensor:
    """The true clip of an effect on one of the evaluation scenes, uint8 [F, 3, H, W].

    Raises:
        InputError: no such effect, or no such scene.
    """
    scenes = evaluation_scenes()
    if not 0 <= scene < len(scenes):
        raise InputError(f"scene {scene} does not exist; give one of 0 to {len(scenes) - 1}")
    params = sample_params(effect_index(name), 1, None, variation=0)
    return draw_clips(scenes.select(slice(scene, scene + 1)), params, load_atlas(), frames, size)[0]


def write_clip_sheet(path: str | Path, name: str, scenes: Sequence[int] = tuple(range(8))) -> None:
    """A PNG with one effect on several evaluation scenes: a row each, eight frames."""
    index = torch.tensor(list(scenes))
    chosen = evaluation_scenes().select(index)
    params = sample_params(effect_index(name), len(chosen), None, variation=0)
    video = draw_clips(chosen, params, load_atlas())
    _write_sheet(path, video, [f"{name}, scene {i}" for i in scenes], columns=1, shown=8)


def write_contact_sheet(
    path: str | Path, names: Sequence[str] | None = None, frames: int = 5, columns: int = 3
) -> None:
    """A PNG with all effects, or those named: each with its name and `frames` frames on a scene of its own."""
    scenes = evaluation_scenes()
    index = torch.tensor([effect_index(name) for name in names] if names else range(len(EFFECTS)))
    params = sample_params(index, None, None, variation=0)
    video = draw_clips(scenes.select(index * 7 % len(scenes)), params, load_atlas())
    specs = [EFFECTS[i] for i in index.tolist()]
    _write_sheet(path, video, [f"{s.name}  ({s.split}, {s.category})" for s in specs], columns, frames)


def write_motion_sheet(path: str | Path, count: int = 48, seed: int = 0) -> None:
    """A PNG with clips of the generic motion that the base is trained on, under their captions."""
    generator = torch.Generator().manual_seed(seed)
    scenes: Scenes = sample_scenes(count, generator)
    params, captions = sample_motion(count, generator, scenes=scenes)
    video = draw_clips(scenes, params, load_atlas())
    _write_sheet(path, video, [CAPTIONS[i] for i in captions.tolist()], columns=2, shown=6)


def _write_sheet(path: str | Path, video: Tensor, labels: Sequence[str], columns: int, shown: int) -> None:
    count, frames, _, height, width = video.shape
    at = torch.linspace(0, frames - 1, shown).round().long()
    cell_width, cell_height = shown * width + GAP, height + LABEL + GAP
    sheet = Image.new("RGB", (columns * cell_width, -(-count // columns) * cell_height), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for i, label in enumerate(labels):
        left, top = i % columns * cell_width, i // columns * cell_height
        pen.text((left, top), label, fill=(0, 0, 0))
        strip = video[i, at].permute(2, 0, 3, 1).reshape(height, shown * width, 3)
        sheet.paste(Image.fromarray(strip.numpy()), (left, top + LABEL))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")
