"""mp4 and GIF round trips, sheets, and one-line errors for what cannot be read or written."""

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from p2e.errors import FormatError, InputError, OutputError
from p2e.render.video import Clip, contact_sheet, read_video, side_by_side, write_gif, write_mp4, write_video


def moving_square(frames: int = 9, height: int = 48, width: int = 64, fps: float = 8.0) -> Clip:
    """A colour gradient with an orange square that walks across it."""
    y, x = np.mgrid[:height, :width]
    still = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 90)], axis=2).astype(np.uint8)
    clip = still[None].repeat(frames, axis=0)
    for index in range(frames):
        clip[index, 10:26, 3 * index : 3 * index + 16] = (255, 140, 0)
    return Clip(clip, fps)


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def test_mp4_round_trip(tmp_path: Path) -> None:
    clip = moving_square()
    write_mp4(tmp_path / "a.mp4", clip, crf=4)
    back = read_video(tmp_path / "a.mp4")
    assert back.frames.shape == clip.frames.shape and back.fps == 8
    assert psnr(clip.frames, back.frames) > 28
    assert list(tmp_path.iterdir()) == [tmp_path / "a.mp4"]
    write_mp4(tmp_path / "b.mp4", clip, crf=4)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_mp4_of_odd_size_and_enlarged(tmp_path: Path) -> None:
    clip = moving_square(frames=3, height=35, width=51)
    write_mp4(tmp_path / "odd.mp4", clip)
    assert read_video(tmp_path / "odd.mp4").size == (36, 52)
    write_mp4(tmp_path / "large.mp4", clip, scale=3, crf=4)
    large = read_video(tmp_path / "large.mp4")
    assert large.size == (106, 154)
    assert psnr(clip.enlarged(3).frames, large.frames[:, :105, :153]) > 28


@pytest.mark.parametrize("fps", [6.0, 8.0, 16.0, 30.0])
def test_gif_round_trip(tmp_path: Path, fps: float) -> None:
    clip = moving_square(fps=fps)
    write_gif(tmp_path / "a.gif", clip, scale=2)
    back = read_video(tmp_path / "a.gif")
    assert (len(back), back.size, back.fps) == (9, (96, 128), fps)
    assert psnr(clip.enlarged(2).frames, back.frames) > 24
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info["loop"] == 0


@settings(max_examples=20, deadline=None)
@given(
    shades=st.lists(st.sampled_from([0, 85, 170, 255]), min_size=1, max_size=12), fps=st.sampled_from([4, 8, 10, 24])
)
def test_gif_keeps_repeated_frames(tmp_path_factory: pytest.TempPathFactory, shades: list[int], fps: int) -> None:
    frames = np.array(shades, np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    path = tmp_path_factory.mktemp("gif") / "a.gif"
    write_gif(path, Clip(frames, fps))
    assert np.array_equal(read_video(path).frames, frames)


def test_write_video_goes_by_the_ending(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.GIF"):
        write_video(tmp_path / name, moving_square(frames=2))
        assert len(read_video(tmp_path / name)) == 2
    with pytest.raises(InputError, match=r"c\.webm: videos are written as \.mp4 or \.gif"):
        write_video(tmp_path / "c.webm", moving_square(frames=2))


def test_unreadable_videos_are_one_line(tmp_path: Path) -> None:
    write_mp4(tmp_path / "good.mp4", moving_square())
    write_gif(tmp_path / "good.gif", moving_square())
    bad = {
        "text.mp4": b"not a video at all",
        "empty.mp4": b"",
        "cut.mp4": (tmp_path / "good.mp4").read_bytes()[:200],
        "head.gif": b"GIF89a",
        "huge.gif": b"GIF89a\xff\xff\xff\xff" + (tmp_path / "good.gif").read_bytes()[10:],
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FormatError) as caught:
            read_video(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(FormatError, match="no such file"):
        read_video(tmp_path / "missing.mp4")


def test_unwritable_output_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for write in (write_mp4, write_gif):
        with pytest.raises(OutputError, match="cannot be written"):
            write(tmp_path / "file" / "out.mp4", moving_square(frames=2))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))  # as a full disk: the write starts and cannot go on
    try:
        for write in (write_mp4, write_gif):
            with pytest.raises(OutputError, match="cannot be written") as caught:
                write(tmp_path / "out.mp4", moving_square())
            assert "\n" not in str(caught.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_contact_sheet_shows_first_and_last_frame() -> None:
    clip = moving_square(frames=7)
    sheet = np.asarray(contact_sheet([("base", clip), ("predicted\nblue mood", clip)], columns=4))
    assert sheet.shape[0] == 2 * 48 + 3 * 4
    left = sheet.shape[1] - 4 * 68
    assert np.array_equal(sheet[4:52, left : left + 64], clip.frames[0])
    assert np.array_equal(sheet[4:52, left + 3 * 68 : left + 3 * 68 + 64], clip.frames[6])
    assert (sheet[56:104, :left] < 128).any()  # the second label
    with pytest.raises(InputError, match="at least one clip"):
        contact_sheet([])


def test_side_by_side() -> None:
    clip = moving_square(frames=3)
    both = side_by_side([clip, clip], ["base", "LoRA"], scale=2)
    assert np.array_equal(both.frames[:, -96:, :128], clip.enlarged(2).frames)
    assert np.array_equal(both.frames[:, -96:, -128:], clip.enlarged(2).frames)
    assert (both.frames[0, :-96, 132:] < 128).any()
    with pytest.raises(InputError, match="equal lengths"):
        side_by_side([clip, moving_square(frames=2)], ["a", "b"])
    with pytest.raises(InputError, match="give each clip one"):
        side_by_side([clip], [])


def test_clip_refuses_other_arrays() -> None:
    arrays: tuple[Any, ...] = (np.zeros((2, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4, 4, 3), np.uint8))
    for frames in arrays:
        with pytest.raises(InputError, match="a clip is uint8"):
            Clip(frames)
    with pytest.raises(InputError, match="frames per second"):
        Clip(np.zeros((1, 4, 4, 3), np.uint8), 0)
