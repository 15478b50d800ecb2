"""A clip as the judge sees it: the same frames that the CLIP score takes, chosen here and by no server.

vLLM's own loader of Qwen3-VL samples by frames per second and pays no heed to a number of frames: of 81 frames at 16
a second it keeps 10. So the frames travel as JPEG pictures in one data URL, and say where in the clip they were.
"""

import base64
import io
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from eval.metrics.base import Unscorable
from eval.metrics.sampling import uniform_frames
from p2e.render.video import Clip

__all__ = ["Frames", "chosen_frames", "picture", "png_url"]

QUALITY = 95


@dataclass(frozen=True)
class Frames:
    """Frames of a clip.

    Attributes:
        pixels: uint8 [N, H, W, 3].
        indices: N places in the clip; total: frames that it has; fps: its rate, frames per second.
    """

    pixels: NDArray[np.uint8]
    indices: tuple[int, ...]
    total: int
    fps: float

    @property
    def url(self) -> str:
        """data:video/jpeg;base64,FRAME,FRAME ..."""
        return "data:video/jpeg;base64," + ",".join(_jpeg(frame) for frame in self.pixels)

    @property
    def metadata(self) -> dict[str, Any]:
        """What vLLM is told with them: without it, it takes them for one frame a second and takes some of them out."""
        return {
            "fps": self.fps, "frames_indices": list(self.indices), "total_num_frames": self.total,
            "duration": self.total / self.fps, "num_frames": len(self.indices), "do_sample_frames": False,
        }  # fmt: skip


def chosen_frames(clip: Clip, count: int, side: int) -> Frames:
    """`count` frames, evenly spread; pictures longer than `side` pixels are shrunk."""
    total = len(clip.frames)
    indices = uniform_frames(total, count)
    shrunk = {index: _shrunk(Image.fromarray(clip.frames[index]), side) for index in set(indices)}
    pixels = np.stack([np.asarray(shrunk[index]) for index in indices])
    return Frames(pixels, tuple(indices), total, clip.fps)


def picture(path: str, side: int) -> Image.Image:
    """A picture, RGB, shrunk likewise.

    Raises:
        Unscorable: "missing" or "not_an_image".
    """
    try:
        with fsspec.open(path, "rb") as file, Image.open(file) as image:  # pyright: ignore[reportArgumentType]
            return _shrunk(image.convert("RGB"), side)
    except FileNotFoundError:
        raise Unscorable("missing", f"there is no file {path}") from None
    except (
        OSError,
        ValueError,
        SyntaxError,
        ImportError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
    ) as error:
        raise Unscorable("not_an_image", f"{path} cannot be read as one ({type(error).__name__})") from None


def png_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _jpeg(frame: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return base64.b64encode(buffer.getvalue()).decode()


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    if scale >= 1:
        return image
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.resize(size, Image.Resampling.LANCZOS)
