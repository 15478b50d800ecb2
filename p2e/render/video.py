"""Clips in memory and on disk: mp4 and GIF out and in, contact sheets, clips side by side.

Shapes: F frames, H x W pixels; frames are uint8 RGB [F, H, W, 3].
"""

import itertools
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from p2e.errors import FormatError, InputError
from p2e.files import atomic_path

__all__ = [
    "Clip", "TooManyPixelsError", "contact_sheet", "read_video", "side_by_side", "write_gif", "write_mp4", "write_video"
]  # fmt: skip

MAX_PIXELS = 1 << 31  # of a whole decoded clip: 6 GB; a file that claims more is refused before it is decoded
GIF_TAG = "p2e fps="  # GIF stores hundredths of a second and merges equal frames; the comment keeps what was meant
INK, PAPER = (20, 20, 20), (255, 255, 255)


class TooManyPixelsError(FormatError):
    """A video is too large to be decoded into memory."""


@dataclass(frozen=True)
class Clip:
    """Frames uint8 RGB [F, H, W, 3] and their rate in frames per second.

    Raises:
        InputError: the array is of another type or shape, or has no frames.
    """

    frames: NDArray[np.uint8]
    fps: float = 8.0

    def __post_init__(self) -> None:
        if self.frames.dtype != np.uint8 or self.frames.ndim != 4 or self.frames.shape[3] != 3 or not self.frames.size:
            raise InputError(
                f"a clip is uint8 [F, H, W, 3], not {self.frames.dtype} {list(self.frames.shape)}; convert the frames"
            )
        if not 0 < self.fps <= 1000:
            raise InputError(f"a clip cannot have {self.fps} frames per second; give a rate such as 8")

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.frames.shape[1], self.frames.shape[2]

    def enlarged(self, scale: int) -> "Clip":
        """Every pixel repeated scale x scale times, so that a tiny clip can be looked at."""
        if scale < 1:
            raise InputError(f"a clip cannot be enlarged {scale} times; give 1 or more")
        return Clip(self.frames.repeat(scale, axis=1).repeat(scale, axis=2), self.fps) if scale > 1 else self


def write_mp4(path: str | Path, clip: Clip, *, scale: int = 1, crf: int = 12) -> None:
    """Writes H.264 in yuv420p, which every player shows; odd sizes get one more row or column, repeated from the edge.

    Args:
        scale: whole factor by which the clip is enlarged.
        crf: x264's constant rate factor, 0 (lossless) to 51 (small).

    Raises:
        OutputError: `path` cannot be written.
    """
    from imageio_ffmpeg import get_ffmpeg_exe

    frames = clip.enlarged(scale).frames
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    # bitexact keeps the encoder's version and the date out: equal clips give equal bytes
    command = [
        get_ffmpeg_exe(), "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size,
        "-r", str(Fraction(clip.fps).limit_denominator(100_000)), "-i", "-", "-an", "-c:v", "libx264",
        "-pix_fmt", "yuv420p", "-crf", str(crf), "-f", "mp4", "-movflags", "+faststart",
        "-fflags", "+bitexact", "-flags:v", "+bitexact",
    ]  # fmt: skip
    with atomic_path(path) as temporary:
        done = subprocess.run([*command, str(temporary)], input=frames.tobytes(), capture_output=True, check=False)
        if done.returncode:
            raise OSError(f"ffmpeg: {_last_line(done.stderr.decode(errors='replace')) or done.returncode}")


def write_gif(path: str | Path, clip: Clip, *, scale: int = 1) -> None:
    """Writes an endless GIF with one palette of 256 colours for the whole clip, so that still parts do not flicker.

    Raises:
        OutputError: `path` cannot be written.
    """
    frames = [Image.fromarray(frame) for frame in clip.frames]
    mosaic = Image.fromarray(clip.frames.reshape(-1, clip.frames.shape[2], 3))
    palette = mosaic.quantize(256, Image.Quantize.MEDIANCUT)
    dither = Image.Dither.FLOYDSTEINBERG
    indexed = [frame.quantize(palette=palette, dither=dither) for frame in frames]
    if scale > 1:
        indexed = [
            frame.resize((frame.width * scale, frame.height * scale), Image.Resampling.NEAREST) for frame in indexed
        ]
    # Times in whole hundredths of a second that add up: 8 fps is 12, 13, 12, 13 ...
    times = [round(100 * index / clip.fps) * 10 for index in range(len(frames) + 1)]
    durations = [max(stop - start, 10) for start, stop in itertools.pairwise(times)]
    with atomic_path(path) as temporary:
        indexed[0].save(
            temporary, "GIF", save_all=True, append_images=indexed[1:], duration=durations, loop=0, disposal=1,
            optimize=False, comment=f"{GIF_TAG}{clip.fps:g} frames={len(frames)}".encode(),
        )  # fmt: skip


def write_video(path: str | Path, clip: Clip, *, scale: int = 1) -> None:
    """mp4 or GIF, by the ending of `path`.

    Raises:
        InputError: another ending.
        OutputError: `path` cannot be written.
    """
    writers = {".mp4": write_mp4, ".gif": write_gif}
    suffix = Path(path).suffix.lower()
    if suffix not in writers:
        raise InputError(f"{path}: videos are written as .mp4 or .gif; change the ending")
    writers[suffix](path, clip, scale=scale)


def read_video(path: str | Path) -> Clip:
    """Reads a GIF, or anything that ffmpeg decodes.

    Raises:
        FormatError: the file is missing, not a video, or too large to decode.
    """
    if not Path(path).is_file():
        raise FormatError(f"{path}: no such file; check the path")
    with Path(path).open("rb") as file:
        is_gif = file.read(4) == b"GIF8"
    return _read_gif(path) if is_gif else _read_ffmpeg(path)


def _read_gif(path: str | Path) -> Clip:
    try:
        with Image.open(path) as image:
            count = getattr(image, "n_frames", 1)
            _check_pixels(path, image.width * image.height * count)
            frames, durations = [], []
            for index in range(count):
                image.seek(index)
                frames.append(np.asarray(image.convert("RGB")))
                durations.append(max(image.info.get("duration", 100), 10))
            comment = image.info.get("comment", b"").decode("latin-1")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError, UnidentifiedImageError) as error:
        raise FormatError(
            f"{path}: not a readable GIF ({_last_line(str(error)) or type(error).__name__}); write it again"
        ) from None
    fps = _tagged_fps(comment) or 1000 / min(durations)
    ends = list(itertools.accumulate(durations))
    total = max(round(ends[-1] * fps / 1000), len(frames))
    _check_pixels(path, frames[0].shape[0] * frames[0].shape[1] * total)
    # A frame shown longer stands for several equal ones: sample the middle of each frame period.
    middles = (np.arange(total) + 0.5) * ends[-1] / total
    picks = np.searchsorted(ends, middles, side="right").clip(max=len(frames) - 1)
    return Clip(np.stack([frames[pick] for pick in picks]), fps)


def _tagged_fps(comment: str) -> float | None:
    if not comment.startswith(GIF_TAG):
        return None
    try:
        fps = float(comment[len(GIF_TAG) :].split()[0])
    except (ValueError, IndexError):
        return None
    return fps if 0 < fps <= 1000 else None


def _read_ffmpeg(path: str | Path) -> Clip:
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(path), pix_fmt="rgb24")
    try:
        meta: Any = next(reader)
        width, height = meta["size"]
        _check_pixels(path, int(width * height * max(meta["fps"] * meta["duration"], 1)))
        frames = []
        for data in reader:  # counted, too: there may be more than the file claims
            frames.append(np.frombuffer(data, np.uint8).reshape(height, width, 3))
            _check_pixels(path, width * height * len(frames))
    except FormatError:
        raise
    except (OSError, RuntimeError, StopIteration, KeyError, ValueError) as error:
        cause = _last_line(str(error)) or type(error).__name__
        raise FormatError(f"{path}: not a readable video ({cause}); write it again as mp4 or GIF") from None
    finally:
        reader.close()
    if not frames:
        raise FormatError(f"{path}: the video has no frames; write it again")
    return Clip(np.stack(frames), float(meta["fps"]))


def _check_pixels(path: str | Path, pixels: int) -> None:
    if pixels > MAX_PIXELS:
        raise TooManyPixelsError(f"{path}: {pixels} pixels in all are too many to decode; shorten or shrink the video")


def _last_line(text: str) -> str:
    return next((line.strip()[:120] for line in reversed(text.splitlines()) if line.strip()), "")


def contact_sheet(rows: Sequence[tuple[str, Clip]], columns: int = 6, *, scale: int = 1) -> Image.Image:
    """One row a clip: its label, then `columns` frames from the first to the last, evenly spaced.

    Raises:
        InputError: no rows, or no columns.
    """
    if not rows or columns < 1:
        raise InputError("a contact sheet needs at least one clip and one column")
    clips = [clip.enlarged(scale) for _, clip in rows]
    font = _font(max(12, min(clip.size[0] for clip in clips) // 8))
    gap, margin = 4, max(_text_size(label, font)[0] for label, _ in rows) + 12
    cell = max(clip.size[1] for clip in clips) + gap
    sheet = Image.new("RGB", (margin + columns * cell, sum(clip.size[0] + gap for clip in clips) + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = gap
    for (label, _), clip in zip(rows, clips, strict=True):
        height = clip.size[0]
        draw.multiline_text((6, top + height // 2), label, INK, font, anchor="lm")
        for column, index in enumerate(np.linspace(0, len(clip) - 1, columns).round().astype(int)):
            sheet.paste(Image.fromarray(clip.frames[index]), (margin + column * cell, top))
        top += height + gap
    return sheet


def side_by_side(clips: Sequence[Clip], labels: Sequence[str], *, scale: int = 1) -> Clip:
    """Clips of one length and rate next to each other, each under its label; heights are filled up with white.

    Raises:
        InputError: no clips, another number of labels, or clips of different lengths or rates.
    """
    if not clips or len(clips) != len(labels):
        raise InputError(f"{len(clips)} clips with {len(labels)} labels; give each clip one")
    if len({(len(clip), clip.fps) for clip in clips}) > 1:
        found = ", ".join(f"{len(clip)} at {clip.fps:g} fps" for clip in clips)
        raise InputError(f"clips side by side need equal lengths and rates, not {found}")
    clips = [clip.enlarged(scale) for clip in clips]
    font = _font(max(12, min(clip.size[1] for clip in clips) // 12))
    strip = max(_text_size(label, font)[1] for label in labels) + 10
    gap = 4
    height = strip + max(clip.size[0] for clip in clips)
    width = sum(clip.size[1] for clip in clips) + gap * (len(clips) - 1)
    header = Image.new("RGB", (width, strip), PAPER)
    draw = ImageDraw.Draw(header)
    frames = np.full((len(clips[0]), height, width, 3), PAPER, np.uint8)
    left = 0
    for clip, label in zip(clips, labels, strict=True):
        draw.multiline_text((left + clip.size[1] // 2, strip // 2), label, INK, font, anchor="mm", align="center")
        frames[:, strip : strip + clip.size[0], left : left + clip.size[1]] = clip.frames
        left += clip.size[1] + gap
    frames[:, :strip] = np.asarray(header)
    return Clip(frames, clips[0].fps)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _text_size(text: str, font: Any) -> tuple[int, int]:
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font)
    return int(box[2] - box[0]), int(box[3] - box[1])
