"""A local file of lines that only grows, and that its writer may be killed over at any point."""

import fcntl
import os
from pathlib import Path
from typing import Self

from p2e.errors import InputError, OutputError

__all__ = ["LineFile"]


class LineFile:
    """The one writer of a file. A last line that a killed writer left half-written is cut off before anything is added.

    Raises:
        InputError: another process writes there.
        OutputError: it cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("ab+")
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error}); check its permissions and the disk") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _mend(file.fileno())
            self._file = file
        except BlockingIOError:
            file.close()
            raise InputError(f"{path}: another process writes there; wait for it, or give another place") from None
        except OSError as error:
            file.close()
            raise OutputError(f"{path}: cannot be locked ({error}); check its permissions and the disk") from None

    def add(self, lines: str) -> None:
        """Whole lines, which are on disk when it returns.

        Raises:
            OutputError: they cannot be written.
        """
        try:
            self._file.write(lines.encode("utf-8", "replace"))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error}); free the disk, run again") from None

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _mend(descriptor: int) -> None:
    """Cuts the file after its last whole line."""
    end = os.lseek(descriptor, 0, os.SEEK_END)
    stop = end
    while stop:
        start = max(0, stop - (1 << 16))
        newline = os.pread(descriptor, stop - start, start).rfind(b"\n")
        if newline >= 0:
            stop = start + newline + 1
            break
        stop = start
    if stop < end:
        os.ftruncate(descriptor, stop)
