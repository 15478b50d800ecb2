"""Files that the service makes, in a local folder or, by URL, wherever fsspec reaches (S3 and its like).

Names are made by the server alone: an id and an ending. They are checked all the same, so that nothing outside the
store can be named. A file is there whole or not at all.
"""

import contextlib
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import fsspec

from p2e.errors import ConfigError
from p2e.files import atomic_path
from serve.errors import NotFound

__all__ = ["ArtefactStore"]

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,95}\.(?:mp4|safetensors|png|json)")
PART = re.compile(rf"\.{NAME.pattern}\.[0-9a-f]{{8}}\.[a-z0-9]+")  # what `atomic_path` writes to before it renames
CHUNK = 1 << 20


class ArtefactStore:
    """A flat folder of files.

    Args:
        root: a local path, or an fsspec URL.
        clock: seconds since 1970, for `older_than`.

    Raises:
        ConfigError: the root cannot be made or reached.
    """

    def __init__(self, root: str, clock: Callable[[], float] = time.time) -> None:
        self.root, self.clock = root.rstrip("/"), clock
        try:
            self._files, self._folder = fsspec.core.url_to_fs(self.root)
            self._files.makedirs(self._folder, exist_ok=True)
        except (OSError, ValueError, ImportError) as error:
            raise ConfigError(f"artefacts: {root} cannot be used ({error}); give a folder or an fsspec URL") from None

    def _path(self, name: str) -> str:
        if not NAME.fullmatch(name):
            raise NotFound("no such file")
        return f"{self._folder}/{name}"

    def url(self, name: str) -> str:
        """Where a file is, for whoever reads paths and fsspec URLs.

        Raises:
            NotFound: it is no name of a file.
        """
        self._path(name)
        return f"{self.root}/{name}"

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local path to write to; the file is in the store once the context ends without an error.

        Raises:
            OutputError: it cannot be stored.
        """
        with atomic_path(self.url(name)) as path:
            yield path

    def put(self, name: str, source: Path) -> None:
        """Stores a local file.

        Raises:
            OutputError: it cannot be stored.
        """
        with self.writing(name) as path:
            shutil.copyfile(source, path)

    def size(self, name: str) -> int:
        """Bytes.

        Raises:
            NotFound: it is not there.
        """
        with _found():
            return int(self._files.size(self._path(name)))

    def open(self, name: str) -> IO[Any]:
        """For reading bytes, at any place.

        Raises:
            NotFound: it is not there.
        """
        with _found():
            return self._files.open(self._path(name), "rb")

    def read(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        """Bytes start to stop, a piece at a time.

        Raises:
            NotFound: it is not there.
        """
        with self.open(name) as file:
            file.seek(start)
            left = stop - start
            while left > 0 and (piece := file.read(min(CHUNK, left))):
                left -= len(piece)
                yield piece

    def remove(self, name: str) -> None:
        """Removes a file; one that is not there is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def names(self) -> list[str]:
        """Of all whole files."""
        return [name for name in self._all() if NAME.fullmatch(name)]

    def _all(self) -> list[str]:
        self._files.invalidate_cache()
        return sorted(str(path).rpartition("/")[2] for path in self._files.ls(self._folder, detail=False))

    def older_than(self, seconds: float, names: Sequence[str] | None = None) -> list[str]:
        """Files, of those named or of all, that were stored longer ago: where no record knows one, whoever wrote it
        died before it said so."""
        return [name for name in (self.names() if names is None else names) if self._age(self._path(name)) > seconds]

    def _age(self, path: str) -> float:
        """Seconds since it was written; negative where it is not there."""
        try:
            return self.clock() - self._files.modified(path).timestamp()
        except FileNotFoundError:
            return -1.0

    def remove_parts(self, seconds: float) -> list[str]:
        """Removes files whose writers stopped half-way, so long ago that they do not go on -> their names."""
        names = [name for name in self._all() if PART.fullmatch(name)]
        gone = [name for name in names if self._age(f"{self._folder}/{name}") > seconds]
        for name in gone:
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(f"{self._folder}/{name}")
        return gone


@contextlib.contextmanager
def _found() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NotFound("no such file") from None
