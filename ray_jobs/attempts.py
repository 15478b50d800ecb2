"""How often a piece of work was begun. Ray begins again whatever died with its worker, for ever; this sets an end."""

import contextlib
import os
import platform
import uuid

from p2e.errors import InputError
from p2e.files import atomic_path, file_sizes
from ray_jobs.session import remove

__all__ = ["Attempts"]


class Attempts:
    """Marks of the work that was begun in one run of a job, in a folder that all its machines see.

    Args:
        folder: local, or an fsspec URL; each run has a folder of its own in it.
        limit: how often a piece of work may be begun.
    """

    def __init__(self, folder: str, limit: int) -> None:
        self.folder = f"{folder}/{uuid.uuid4().hex[:12]}"
        self.limit = limit

    def begin(self, key: str) -> None:
        """Notes that work on `key` begins.

        Raises:
            InputError: it was begun `limit` times before, so it killed its worker as often.
        """
        names = file_sizes(f"{self.folder}/{key}")
        if len(names) >= self.limit:
            raise InputError(
                f"its worker died {self.limit} times, of memory perhaps; give a task more, or leave it out"
            )
        with atomic_path(f"{self.folder}/{key}/{len(names)}") as path:
            path.write_text(f"{platform.node()} {os.getpid()}\n")  # whom to look for in the logs

    def remove(self) -> None:
        """Takes the marks away."""
        with contextlib.suppress(OSError):  # marks that stay do no harm
            remove(self.folder)
