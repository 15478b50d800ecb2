"""Encoded clips and captions on disk, named by what they were made from, so that each is made once."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import torch

from p2e.errors import FormatError
from p2e.files import SafetensorsFile, write_safetensors

__all__ = ["RECIPE", "RecordCache", "content_digest", "default_cache", "digest_of"]

RECIPE = "1"
"""Version of how records are made; a change of it makes all of them anew."""

WHOLE = 256 << 20  # larger files are read at so many places only
PLACES, PIECE = 64, 1 << 16


def default_cache() -> Path:
    """Where records are kept unless the user says otherwise: in the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "p2e" / "adapt"


def digest_of(*parts: object) -> str:
    """One digest of several things, by their text."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def content_digest(folders: Iterable[Path]) -> str:
    """A digest of the files in folders (not in theirs): names, sizes and bytes.

    Of a file above 256 MiB, 64 pieces spread over it stand for the rest: weights of another training differ in all.
    """
    total = hashlib.sha256()
    for folder in folders:
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            size = path.stat().st_size
            total.update(f"{folder.name}/{path.name}:{size}\0".encode())
            with path.open("rb") as file:
                if size <= WHOLE:
                    while piece := file.read(1 << 20):
                        total.update(piece)
                else:
                    for place in range(PLACES):
                        file.seek((size - PIECE) * place // (PLACES - 1))
                        total.update(file.read(PIECE))
    return total.hexdigest()


class RecordCache:
    """Records by digest, a safetensors file each.

    Args:
        folder: made when the first record is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def read(self, digest: str) -> dict[str, torch.Tensor] | None:
        """The record, or None where there is none that can be read."""
        path = self.path(digest)
        if not path.is_file():
            return None
        try:
            with SafetensorsFile(path) as file:
                return file.read_all()
        except FormatError:
            return None  # a damaged record is made anew

    def write(self, digest: str, record: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Keeps a record, on the CPU, and returns it; float32 that bfloat16 holds exactly is kept as that.

        Raises:
            OutputError: the folder cannot be written to.
        """
        kept = {}
        for name, tensor in record.items():
            own = tensor.detach().cpu()
            if own.dtype == torch.float32 and torch.equal(own.bfloat16().float(), own):
                own = own.bfloat16()
            kept[name] = own.contiguous()
        write_safetensors(self.path(digest), kept)
        return kept
