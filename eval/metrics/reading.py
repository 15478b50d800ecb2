"""Clips from wherever they are, and a word for why one cannot be read."""

import tempfile
from pathlib import Path

import fsspec

from eval.metrics.base import Unscorable
from p2e.errors import FormatError
from p2e.render.video import Clip, read_video

__all__ = ["MAX_BYTES", "read_clip"]

MAX_BYTES = 1 << 30


def read_clip(path: str | Path) -> Clip:
    """Reads a video, local or behind an fsspec URL.

    Raises:
        Unscorable: "missing", "empty_file", "too_large", or "not_a_video", which is also said of a file without a video
            stream and of one that breaks off before its first frame.
    """
    try:
        system, inner = fsspec.core.url_to_fs(str(path))
        size = system.size(inner) if system.isfile(inner) else None
    except (OSError, ValueError, ImportError) as error:
        raise Unscorable("missing", f"{path} cannot be reached ({type(error).__name__})") from None
    if size is None:
        raise Unscorable("missing", f"there is no file {path}")
    if size == 0:
        raise Unscorable("empty_file", f"{path} has no bytes")
    if size > MAX_BYTES:
        raise Unscorable("too_large", f"{path} has {size} bytes, more than {MAX_BYTES}")
    with tempfile.TemporaryDirectory() as folder:
        local = Path(inner)
        if "://" in str(path):
            local = Path(folder, f"clip{Path(inner).suffix}")
            try:
                system.get_file(inner, str(local))
            except OSError as error:
                raise Unscorable("missing", f"{path} cannot be fetched ({type(error).__name__})") from None
        try:
            return read_video(local)
        except FormatError as error:
            raise Unscorable("not_a_video", " ".join(str(error).split())[:300]) from None
