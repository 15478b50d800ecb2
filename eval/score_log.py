"""Scores as they come in, kept so that a writer may be killed at any point: lines of a file, or numbered parts."""

import fcntl
import os
import time
from pathlib import Path
from typing import Self

from eval.run_files import Score, lines_of
from p2e.errors import InputError, OutputError
from p2e.files import file_sizes, write_text

__all__ = ["ScoreLog"]

PART_LINES, PART_SECONDS = 500, 60.0  # an object cannot be appended to: so much is lost with a killed writer


class ScoreLog:
    """The one writer of RUN/scores/NAME.jsonl, or, behind a URL, of NAME-00000.jsonl, NAME-00001.jsonl ...

    A last line that a killed writer left half-written is cut off before anything is added. Locally, every `add` is on
    disk when it returns.

    Args:
        folder: of the run.
        name: of the file.

    Raises:
        InputError: another process writes there.
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: str, name: str) -> None:
        self.folder, self.name = f"{folder}/scores", name
        self._lines: list[Score] = []
        self._since = time.monotonic()
        self._file = None
        if "://" in folder:
            names = [n for n in file_sizes(self.folder) if n.startswith(f"{name}-") and n.endswith(".jsonl")]
            self._part = 1 + max((int(n[len(name) + 1 : -6]) for n in names), default=-1)
            return
        path = Path(self.folder) / f"{name}.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("ab+")
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error}); check its permissions and the disk") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _mend(file.fileno())
            self._file = file
        except BlockingIOError:
            file.close()
            raise InputError(f"{path}: another sweep writes there; wait for it, or give another folder") from None
        except OSError as error:
            file.close()
            raise OutputError(f"{path}: cannot be locked ({error}); check its permissions and the disk") from None

    def add(self, scores: list[Score]) -> None:
        """Keeps scores.

        Raises:
            OutputError: they cannot be written.
        """
        if not scores:
            return
        if self._file is None:
            self._lines += scores
            if len(self._lines) >= PART_LINES or time.monotonic() - self._since >= PART_SECONDS:
                self._write_part()
            return
        try:
            self._file.write(lines_of(scores).encode("utf-8", "replace"))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"{self._file.name}: cannot be written ({error}); free the disk, run again") from None

    def close(self) -> None:
        if self._file is None:
            self._write_part()
        else:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_part(self) -> None:
        if self._lines:
            write_text(f"{self.folder}/{self.name}-{self._part:05}.jsonl", lines_of(self._lines))
            self._part += 1
        self._lines, self._since = [], time.monotonic()


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
