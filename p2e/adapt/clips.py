"""Training clips from a folder: videos beside captions, cut to one size, length and frame rate.

A folder holds `name.mp4` (or .gif) with `name.txt`, the caption, beside it; or a `clips.jsonl` of rows
{"video": path, "caption": text} with paths relative to it.

Shapes: F frames, H x W pixels.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from p2e.errors import InputError
from p2e.files import read_text
from p2e.render.video import Clip, read_video
from p2e.text import check_prompt

__all__ = ["CaptionedClip", "fit_clip", "list_clips", "read_clip"]

ENDINGS = (".mp4", ".gif")


@dataclass(frozen=True, slots=True)
class CaptionedClip:
    """One training example on disk."""

    video: Path
    caption: str


def list_clips(folder: str | Path) -> list[CaptionedClip]:
    """The examples of a folder, in the order of their names.

    Raises:
        InputError: no such folder, no clips in it, a clip without a caption, or a row that is not as described.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give one with name.mp4 and name.txt pairs, or a clips.jsonl")
    listing = root / "clips.jsonl"
    if listing.exists():
        found = []
        for number, line in enumerate(read_text(listing).splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                found.append(CaptionedClip(root / row["video"], check_prompt(row["caption"])))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f'{listing}:{number}: want {{"video": ..., "caption": ...}} ({error})') from None
    else:
        found = []
        for video in sorted(p for p in root.iterdir() if p.suffix.lower() in ENDINGS):
            text = video.with_suffix(".txt")
            if not text.exists():
                raise InputError(f"{video}: no caption beside it; write {text.name}")
            try:
                found.append(CaptionedClip(video, check_prompt(read_text(text))))
            except InputError as error:
                raise InputError(f"{text}: {error}") from None
    if not found:
        raise InputError(f"{root}: no clips; put {' or '.join(ENDINGS)} files there, each with a .txt of its name")
    return found


def fit_clip(clip: Clip, frames: int, height: int, width: int, fps: float) -> Tensor:
    """uint8 [F, 3, H, W]: resampled in time to `fps` by nearest frames from the first on, scaled to cover the size and
    cut at the centre.

    Raises:
        InputError: the clip is shorter than `frames` at `fps`.
    """
    times = np.arange(frames) / fps * clip.fps
    index = np.floor(times + 0.5).astype(int)
    if index[-1] > len(clip) - 1 + 0.5:
        raise InputError(
            f"{len(clip)} frames at {clip.fps:g} per second are too short: {frames} frames at {fps:g} are wanted"
        )
    index = index.clip(max=len(clip) - 1)
    scale = max(height / clip.size[0], width / clip.size[1])
    size = (max(width, round(clip.size[1] * scale)), max(height, round(clip.size[0] * scale)))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    out = []
    for frame in clip.frames[index]:
        if (size[1], size[0]) != clip.size:
            frame = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
        out.append(frame[top : top + height, left : left + width])
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).contiguous()


def read_clip(example: CaptionedClip) -> Clip:
    """The whole video of an example.

    Raises:
        InputError: it cannot be read; the message names it.
    """
    try:
        return read_video(example.video)
    except InputError as error:
        message = str(error)
        raise InputError(message if str(example.video) in message else f"{example.video}: {message}") from None
