"""Pictures that strangers send: what is decoded, and what is refused before it is.

A picture is opened as one of three formats by its content, whatever its name says; its size is read from its header and
checked before memory is taken for its pixels; it is turned upright and comes out as plain RGB, without anything that
stood beside the pixels.
"""

import io
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field

from p2e.config import Settings
from p2e.errors import InputError
from p2e.render.image import fit_image
from serve.errors import ApiError

__all__ = ["PictureLimits", "PictureTooLarge", "UnsupportedPicture", "WrongPicture", "decode_picture"]

FORMATS = ("PNG", "JPEG", "WEBP")
PARAM = "input_reference"


class PictureLimits(Settings):
    """Bounds of a picture.

    Attributes:
        max_bytes: of the file.
        max_pixels: of the picture.
        min_side, max_side: pixels.
        max_aspect: the longer side over the shorter one.
    """

    max_bytes: int = Field(default=10 << 20, ge=1)
    max_pixels: int = Field(default=25_000_000, ge=1)
    min_side: int = Field(default=16, ge=16)
    max_side: int = Field(default=8192, ge=16)
    max_aspect: float = Field(default=8, ge=1)


class PictureTooLarge(ApiError):
    """More bytes or pixels than allowed."""

    status, code = 413, "picture_too_large"


class UnsupportedPicture(ApiError):
    """Of no known format."""

    status, code = 415, "unsupported_picture"


class WrongPicture(ApiError):
    """Of a known format, and not usable."""

    status, code = 422, "wrong_picture"


def decode_picture(data: bytes, limits: PictureLimits = PictureLimits()) -> Image.Image:  # noqa: B008  frozen
    """The picture as RGB, upright.

    Raises:
        PictureTooLarge, UnsupportedPicture, WrongPicture: it cannot be used; each names the remedy.
    """
    if len(data) > limits.max_bytes:
        raise PictureTooLarge(f"the picture has more than {limits.max_bytes} bytes; send a smaller one", param=PARAM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                _check(opened, limits)
                opened.verify()  # reads to the end without making pixels; the file must be opened again after it
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                upright = ImageOps.exif_transpose(opened)
                return fit_image(_eight_bits(upright), upright.height, upright.width)
    except UnidentifiedImageError:
        raise UnsupportedPicture("the picture is no PNG, JPEG or WebP; send one of these", param=PARAM) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError):
        raise PictureTooLarge("the picture has too many pixels; send a smaller one", param=PARAM) from None
    except (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, InputError):
        # What Pillow says of a broken file may quote it; it is not passed on.
        raise WrongPicture("the picture is damaged and cannot be read; save it again", param=PARAM) from None


def _check(picture: Image.Image, limits: PictureLimits) -> None:
    """By the header alone."""
    width, height = picture.size
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise PictureTooLarge(
            f"{width} x {height} pixels are too many; send at most {limits.max_pixels} pixels and "
            f"{limits.max_side} a side", param=PARAM,
        )  # fmt: skip
    if min(width, height) < limits.min_side:
        raise WrongPicture(f"{width} x {height} pixels are too few; send {limits.min_side} a side or more", param=PARAM)
    if max(width, height) > limits.max_aspect * min(width, height):
        raise WrongPicture(
            f"{width} x {height} is too narrow; no side may be more than {limits.max_aspect:g} times the other",
            param=PARAM,
        )
    if getattr(picture, "n_frames", 1) != 1:
        raise WrongPicture("the picture moves; send one with a single frame", param=PARAM)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """16 bits a channel as 8: Pillow's own conversion cuts the values off at 255."""
    if picture.mode.startswith("I"):
        return picture.convert("I").point(lambda value: value / 257).convert("L")
    return picture
