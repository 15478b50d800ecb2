"""First frames: reading, checking, fitting."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p2e.errors import FormatError, InputError
from p2e.render.image import fit_image, load_image

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)


def test_an_image_that_fits_is_untouched() -> None:
    for image in (PIXELS, Image.fromarray(PIXELS), PIXELS.astype(np.float64) / 255):
        assert np.array_equal(np.asarray(fit_image(image, 32, 48)), PIXELS)


def test_other_sizes_are_covered_and_cut_about_the_centre() -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200  # the middle third is what stays
    assert (np.asarray(fit_image(wide, 20, 20)) == 200).all()
    assert fit_image(wide, 64, 96).size == (96, 64)


def test_grey_and_transparent_images_become_rgb() -> None:
    assert np.array_equal(np.asarray(fit_image(PIXELS[..., 0], 32, 48)), PIXELS[..., :1].repeat(3, 2))
    clear = np.concatenate([PIXELS, np.zeros((32, 48, 1), np.uint8)], axis=2)
    assert (np.asarray(fit_image(clear, 32, 48)) == 255).all()


def test_reads_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    assert load_image(tmp_path / "a.png").size == (32, 48)


def test_unreadable_images_are_one_line(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    bomb = b"P6 40000 40000 255\n"
    for name, data in {"text.png": b"no", "cut.png": buffer.getvalue()[:300], "bomb.ppm": bomb, "empty": b""}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FormatError) as caught:
            load_image(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(FormatError, match="no such file"):
        load_image(tmp_path / "missing.png")
    with pytest.raises(FormatError, match="cannot be read"):
        load_image(tmp_path)


def test_unusable_arrays_are_refused() -> None:
    with pytest.raises(InputError, match="int64"):
        fit_image(PIXELS.astype(np.int64), 32, 48)
    with pytest.raises(InputError, match=r"lie in 0\.\.1"):
        fit_image(np.full((32, 48, 3), np.nan), 32, 48)
