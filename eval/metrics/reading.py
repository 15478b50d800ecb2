"""Reading the clip of a run: a `Clip`, or an `Unscorable` whose code says what is the matter with the file.

missing          there is no such file
unreadable       its file system does not give it
empty_file       it has no bytes
too_large        it has too many bytes, or claims too many pixels
not_a_video      nothing that can be decoded, or cut off before the first frame
no_stream        a container without a moving picture: sound alone, or nothing
damaged          cut off, or corrupt: some of its frames cannot be decoded
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import fsspec

from eval.metrics.base import Unscorable
from p2e.errors import FormatError
from p2e.render.video import MAX_PIXELS, Clip, TooManyPixelsError, read_video

__all__ = ["MAX_BYTES", "read_clip"]

MAX_BYTES = 1 << 30  # of a file; a clip of some seconds has a thousandth of it
TIMEOUT_S = 300.0
GIF = b"GIF8"


def read_clip(path: str | Path) -> Clip:
    """Reads an mp4, a GIF, or whatever else ffmpeg decodes, all of its frames.

    Args:
        path: a local path or an fsspec URL.

    Raises:
        Unscorable: with one of the codes above.
    """
    with tempfile.TemporaryDirectory(prefix="p2e-clip-") as folder:
        return _decoded(_local(str(path), Path(folder)))


def _local(path: str, folder: Path) -> Path:
    """The file on this machine; one from elsewhere is fetched into `folder`."""
    try:
        system, inner = fsspec.core.url_to_fs(path)
        if not system.isfile(inner):
            raise Unscorable("missing", "there is no such file")
        size = system.size(inner)
        if size == 0:
            raise Unscorable("empty_file", "the file has no bytes")
        if size is not None and size > MAX_BYTES:
            raise Unscorable("too_large", f"{size} bytes; at most {MAX_BYTES} are read")
        if "file" in (system.protocol if isinstance(system.protocol, tuple) else (system.protocol,)):
            return Path(inner)
        target = folder / "clip"
        with system.open(inner, "rb") as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
        return target
    except Unscorable:
        raise
    except Exception as error:  # a file system may raise anything of its own
        raise Unscorable("unreadable", f"the file cannot be fetched ({type(error).__name__})") from None


def _decoded(path: Path) -> Clip:
    try:
        with path.open("rb") as file:
            is_gif = file.read(4) == GIF
        clip = read_video(path)
    except TooManyPixelsError:
        raise Unscorable("too_large", f"more than {MAX_PIXELS} pixels in all") from None
    except FormatError:
        raise _reason(path) from None
    except OSError as error:
        raise Unscorable("unreadable", f"the file cannot be read ({error.strerror})") from None
    if not is_gif and (words := _complaints(path)):
        # ffmpeg gives what frames it can, without an error: a clip that lost its end would be scored as a short one
        raise Unscorable("damaged", f"some frames cannot be decoded ({words})")
    return clip


def _reason(path: Path) -> Unscorable:
    """Why there is no picture in a file."""
    words = _complaints(path)
    if "matches no streams" in words:
        return Unscorable("no_stream", "the file has no moving picture")
    return Unscorable("not_a_video", "nothing in the file can be decoded")


def _complaints(path: Path) -> str:
    """What ffmpeg says of a file's picture when it decodes all of it: nothing where it is whole."""
    from imageio_ffmpeg import get_ffmpeg_exe

    command = [get_ffmpeg_exe(), "-nostdin", "-v", "error", "-i", str(path), "-map", "0:v:0", "-f", "null", "-"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"decoding takes over {TIMEOUT_S:g} s"
    lines = [line.rpartition("] ")[2].strip() for line in done.stderr.decode(errors="replace").splitlines()]
    words = "; ".join(dict.fromkeys(line.replace(str(path), path.name) for line in lines if line))
    return words or (f"ffmpeg exits with {done.returncode}" if done.returncode else "")
