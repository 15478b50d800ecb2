"""Scores as they come in, kept so that a writer may be killed at any point: lines of a file, or numbered parts."""

import time
from typing import Self

from eval.line_file import LineFile
from eval.run_files import Score, lines_of
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
        self._file = LineFile(f"{self.folder}/{name}.jsonl")

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
        self._file.add(lines_of(scores))

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
