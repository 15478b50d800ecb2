"""Fidelity: its two fixed points, its scale and its bounds."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from p2e.errors import InputError
from p2e.world.oracle import fidelity
from p2e.world.show import GAP, LABEL, clip, write_clip_sheet, write_contact_sheet


def clips(seed: int = 0, count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_truth_is_one_and_still_is_zero() -> None:
    truth = clips()
    still = truth[:, 0]
    assert torch.equal(fidelity(truth, truth, still), torch.ones(3, dtype=torch.float64))
    standing = still[:, None].expand_as(truth)
    assert torch.equal(fidelity(standing, truth, still), torch.zeros(3, dtype=torch.float64))


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 2))
def test_half_of_the_way_leaves_a_quarter_of_the_error(share: float) -> None:
    truth = clips().float() / 255
    still = truth[:, 0]
    video = still[:, None] + share * (truth - still[:, None])
    expected = torch.full((3,), 1 - (1 - share) ** 2, dtype=torch.float64)
    assert torch.allclose(fidelity(video, truth, still), expected, atol=1e-5)


def test_bytes_and_floats_agree_and_the_whole_still_clip_may_be_given() -> None:
    truth, video = clips(0), clips(1)
    whole = truth[:, :1].expand_as(truth)
    expected = fidelity(video, truth, truth[:, 0])
    assert torch.allclose(fidelity(video.float() / 255, truth, whole), expected, atol=1e-6)


def test_clamp_bounds_a_failure() -> None:
    truth = torch.zeros(1, 2, 3, 4, 4)
    truth[:, 1] = 0.1
    video = torch.ones_like(truth)
    assert fidelity(video, truth, truth[:, 0]).item() < -1
    assert fidelity(video, truth, truth[:, 0], clamp=True).item() == -1


def test_no_change_is_not_a_number_and_shapes_must_fit() -> None:
    truth = torch.zeros(1, 2, 3, 4, 4)
    assert fidelity(truth, truth, truth[:, 0]).isnan().all()
    with pytest.raises(InputError, match="one shape"):
        fidelity(truth[:, :1], truth, truth[:, 0])


def test_sheets_and_single_clips_are_written(tmp_path: Path) -> None:
    assert clip("panda", scene=2, frames=3, size=32).shape == (3, 3, 32, 32)
    write_clip_sheet(tmp_path / "panda.png", "panda", scenes=(0, 1))
    assert (tmp_path / "panda.png").stat().st_size > 1000
    with pytest.raises(InputError, match="scene 76"):
        clip("panda", scene=76)


def test_contact_sheet_has_a_cell_for_each_effect(tmp_path: Path) -> None:
    write_contact_sheet(tmp_path / "some.png", ["panda", "twist", "hit"], frames=2, columns=2)
    with Image.open(tmp_path / "some.png") as sheet:
        assert sheet.width == 2 * (2 * 96 + GAP) and sheet.height == 2 * (96 + LABEL + GAP)
