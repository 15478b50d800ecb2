"""Pictures of strangers: each comes out as plain RGB or is refused with a word and a remedy."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from serve.errors import ApiError
from serve.pictures import PictureLimits, PictureTooLarge, UnsupportedPicture, WrongPicture, decode_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def saved(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def header_of_png(width: int, height: int) -> bytes:
    """A PNG that says it is of this size and has hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 100)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def moving(kind: str) -> bytes:
    return saved(Image.fromarray(PIXELS), kind, save_all=True, append_images=[Image.fromarray(255 - PIXELS)])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_known_formats_come_out_as_rgb(kind: str) -> None:
    found = decode_picture(saved(Image.fromarray(PIXELS), kind))
    assert found.mode == "RGB" and found.size == (60, 40) and not found.info.get("exif")
    if kind == "PNG":
        assert np.array_equal(np.asarray(found), PIXELS)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16", "I"])
def test_other_kinds_of_pixels_are_converted(mode: str) -> None:
    picture = Image.fromarray(PIXELS)
    if mode in ("I;16", "I"):
        wide = PIXELS[..., 0].astype(np.uint16) * 257
        found = decode_picture(saved(Image.fromarray(wide if mode == "I;16" else wide.astype(np.int32)), "PNG"))
        assert np.abs(np.asarray(found)[..., 0].astype(int) - PIXELS[..., 0]).max() <= 1
    else:
        kind = "JPEG" if mode == "CMYK" else "PNG"
        found = decode_picture(saved(picture.convert(mode), kind))
    assert found.mode == "RGB" and found.size == (60, 40)


def test_a_turned_picture_is_turned_back() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_picture(saved(Image.fromarray(PIXELS), "JPEG", exif=exif)).size == (40, 60)


@pytest.mark.parametrize("size", [(50_000, 50_000), (65_535, 65_535), (20_000, 20), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    tracemalloc.start()
    with pytest.raises(PictureTooLarge) as error:
        decode_picture(header_of_png(*size))
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()
    assert error.value.status == 413 and error.value.param == "input_reference"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (header_of_png(0, 0), ApiError),
        (header_of_png(8, 8), WrongPicture),
        (header_of_png(16, 2000), WrongPicture),
        (header_of_png(60, 40), WrongPicture),  # cut off
        (saved(Image.fromarray(PIXELS), "JPEG")[:-500], WrongPicture),
        (saved(Image.fromarray(PIXELS), "PNG")[:-50], WrongPicture),
        (saved(Image.fromarray(PIXELS), "GIF"), UnsupportedPicture),
        (saved(Image.fromarray(PIXELS), "TIFF"), UnsupportedPicture),
        (moving("PNG"), WrongPicture),
        (moving("WEBP"), WrongPicture),
        (b"<svg xmlns='http://www.w3.org/2000/svg' width='60' height='40'/>", UnsupportedPicture),
        (b"<!doctype html><script>alert(1)</script>", UnsupportedPicture),
        (b"", UnsupportedPicture),
        (b"\0" * 1000, UnsupportedPicture),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 40\n", UnsupportedPicture),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(data: bytes, kind: type[ApiError]) -> None:
    with pytest.raises(kind) as error:
        decode_picture(data)
    assert 400 <= error.value.status < 500 and "\n" not in error.value.message and "0x" not in error.value.message


def test_a_picture_with_something_behind_it_is_its_pixels() -> None:
    """A file that is a picture and an archive at once leaves the archive behind."""
    found = decode_picture(saved(Image.fromarray(PIXELS)) + b"PK\x03\x04 and more")
    assert np.array_equal(np.asarray(found), PIXELS)


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(PictureTooLarge, match="more than 1000 bytes"):
        decode_picture(b"x" * 1001, PictureLimits(max_bytes=1000))


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=4),
    cut=st.floats(0, 1),
)
def test_damage_is_never_more_than_a_refusal(kind: str, changes: list[tuple[float, bytes]], cut: float) -> None:
    data = bytearray(saved(Image.fromarray(PIXELS), kind))
    for place, value in changes:
        start = int(place * (len(data) - 1))
        data[start : start + len(value)] = value
    try:
        found = decode_picture(bytes(data[: int(len(data) * cut) + 1] if cut < 0.5 else data))
        assert found.mode == "RGB"
    except ApiError as error:
        assert error.status in (413, 415, 422)
