"""First frames: reading an image, checking it, and bringing it to a clip's size."""

import io
import warnings
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from p2e.errors import FormatError, InputError

__all__ = ["MAX_IMAGE_PIXELS", "fit_image", "load_image"]

MAX_IMAGE_PIXELS = 100_000_000
MIN_SIDE = 16


def load_image(path: str | Path) -> Image.Image:
    """Reads an image file, local or behind an fsspec URL, upright as its camera held it.

    Raises:
        FormatError: the file is missing, not an image, or has more than MAX_IMAGE_PIXELS pixels.
    """
    try:
        source: Any = path
        if "://" in str(path):
            with fsspec.open(str(path), "rb") as file:
                source = io.BytesIO(file.read())  # pyright: ignore[reportAttributeAccessIssue]
        # Pillow only warns of a picture that is somewhat too large; the check below refuses it.
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            image = Image.open(source)
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise FormatError(f"{path}: {image.width} x {image.height} pixels are too many; shrink the image")
            return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file; check the path") from None
    except FormatError:
        raise
    except UnidentifiedImageError:
        raise FormatError(f"{path}: not an image; give a PNG, JPEG or WebP file") from None
    except (OSError, SyntaxError, ValueError, ImportError, Image.DecompressionBombError) as error:
        raise FormatError(f"{path}: the image cannot be read ({str(error)[:80]}); save it again") from None


def fit_image(image: Image.Image | NDArray[Any], height: int, width: int) -> Image.Image:
    """The image as RGB of height x width: scaled to cover it, then cut about its centre. One that fits is untouched.

    Args:
        image: PIL, or an array [H, W, 3 or 4] or [H, W], uint8 or floating in 0..1. Transparency is put on white.

    Raises:
        InputError: it is of another kind, has values out of range, or is smaller than 16 pixels a side.
    """
    picture = _from_array(image) if isinstance(image, np.ndarray) else image
    if not isinstance(picture, Image.Image):
        raise InputError(f"an image is a PIL image or an array, not {type(image).__name__}; open the file first")
    if min(picture.size) < MIN_SIDE:
        raise InputError(f"the image has {picture.width} x {picture.height} pixels; give at least {MIN_SIDE} a side")
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    picture = picture.convert("RGB")
    if picture.size == (width, height):
        return picture
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)


def _from_array(image: NDArray[Any]) -> Image.Image:
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
        raise InputError(f"an image array is [H, W, 3], not {list(image.shape)}; put the channels last")
    if np.issubdtype(image.dtype, np.floating):
        if not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
            raise InputError("an image array of floats must lie in 0..1; scale it")
        image = (image * 255).round().astype(np.uint8)
    if image.dtype != np.uint8:
        raise InputError(f"an image array is uint8, or floating in 0..1, not {image.dtype}; convert it")
    return Image.fromarray(np.ascontiguousarray(image))
