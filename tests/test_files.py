"""Safe files: what looks like something else at first sight."""

import struct
from pathlib import Path

import pytest
import torch

from p2e.files import SafetensorsFile, write_safetensors


@pytest.mark.parametrize(("length", "magic"), [(0x580, b"\x80\x05"), (0x4B50, b"PK")])
def test_header_length_that_begins_like_a_pickle(tmp_path: Path, length: int, magic: bytes) -> None:
    """The first bytes of a file are its header's length, and some lengths are the magic of a pickle or a zip."""
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"x": torch.arange(3.0)}, {"pad": ""})
    (shortest,) = struct.unpack("<Q", path.read_bytes()[:8])
    write_safetensors(path, {"x": torch.arange(3.0)}, {"pad": "." * (length - shortest)})
    assert path.read_bytes().startswith(magic)
    with SafetensorsFile(path) as file:
        assert file.read("x").tolist() == [0, 1, 2]
