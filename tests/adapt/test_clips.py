"""Clips from a folder: captions found, sizes and rates fitted, what is missing said in one line."""

import json
from pathlib import Path

import numpy as np
import pytest

from p2e.adapt.clips import fit_clip, list_clips, read_clip
from p2e.errors import InputError
from p2e.render.video import Clip, write_mp4


def ramp(frames: int, height: int = 32, width: int = 48, fps: float = 8.0) -> Clip:
    """Frame i is grey of brightness 8 i."""
    levels = (8 * np.arange(frames)).astype(np.uint8)
    return Clip(np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy(), fps)


def folder_of(tmp_path: Path, count: int = 2) -> Path:
    for i in range(count):
        write_mp4(tmp_path / f"clip{i}.mp4", ramp(9))
        (tmp_path / f"clip{i}.txt").write_text(f"caption {i}\n")
    return tmp_path


def test_pairs_of_a_folder(tmp_path: Path):
    found = list_clips(folder_of(tmp_path))
    assert [(f.video.name, f.caption) for f in found] == [("clip0.mp4", "caption 0"), ("clip1.mp4", "caption 1")]
    assert read_clip(found[0]).frames.shape == (9, 32, 48, 3)
    assert fit_clip(read_clip(found[1]), 5, 16, 16, 8.0).shape == (5, 3, 16, 16)


def test_rows_of_a_listing(tmp_path: Path):
    folder_of(tmp_path)
    (tmp_path / "clips.jsonl").write_text(json.dumps({"video": "clip1.mp4", "caption": "only this"}) + "\n\n")
    assert [(f.video.name, f.caption) for f in list_clips(tmp_path)] == [("clip1.mp4", "only this")]


@pytest.mark.parametrize(("fps", "expected"), [(8.0, [0, 1, 2]), (4.0, [0, 2, 4]), (16.0, [0, 1, 1])])
def test_resampling_takes_the_nearest_frames(fps: float, expected: list[int]):
    out = fit_clip(ramp(9), 3, 32, 48, fps)
    assert [int(x) // 8 for x in out[:, 0, 0, 0]] == expected


def test_cutting_keeps_the_middle():
    frames = np.zeros((1, 16, 32, 3), np.uint8)
    frames[:, :, 8:24] = 200
    out = fit_clip(Clip(frames), 1, 16, 16, 8.0)
    assert out.shape == (1, 3, 16, 16) and int(out.min()) == 200


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda p: p / "absent", "no such folder"),
        (lambda p: p, "no clips"),
        (lambda p: (write_mp4(p / "a.mp4", ramp(2)), p)[1], "a.txt"),
        (lambda p: (write_mp4(p / "a.mp4", ramp(2)), (p / "a.txt").write_text(" "), p)[2], "a.txt"),
        (lambda p: ((p / "clips.jsonl").write_text('{"video": 3}\n'), p)[1], "clips.jsonl:1"),
        (lambda p: ((p / "clips.jsonl").write_text("no json\n"), p)[1], "clips.jsonl:1"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, prepare, said: str):
    with pytest.raises(InputError, match=said) as caught:
        list_clips(prepare(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_clip_that_cannot_be_used_is_refused_by_name(tmp_path: Path):
    (short, broken) = list_clips(folder_of(tmp_path))
    with pytest.raises(InputError, match="too short: 17 frames"):
        fit_clip(read_clip(short), 17, 16, 16, 8.0)
    broken.video.write_bytes(b"no video")
    with pytest.raises(InputError, match=r"clip1\.mp4"):
        read_clip(broken)
