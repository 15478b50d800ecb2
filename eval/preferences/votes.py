"""The answers of people, line by line in RUN/preferences/RATER.jsonl.

A later answer of a rater on the same two clips takes the place of an earlier one. An answer names the clips that were
seen, so that it does not count for others that were rendered later under the same names.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, StringConstraints, model_validator

from eval.line_file import LineFile
from eval.run_files import ClipRow, RunFiles, lines_of
from p2e.config import Settings
from p2e.errors import InputError

__all__ = ["CHOICES", "Choice", "Vote", "VoteLog", "check_rater", "read_votes", "standing"]

Choice = Literal["left", "right", "equal", "bad"]
CHOICES: tuple[str, ...] = get_args(Choice)
RATER = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,49}$"  # a file's name on every system


class Vote(Settings):
    """What a rater said of two clips.

    Attributes:
        left, right: methods, by title, as they stood on the page; the rater did not see the names.
        left_clip, right_clip: keys of the clips.
        choice: the better one, or that both are equal, or both bad.
        seconds: from the first sight of both to the answer.
    """

    rater: Annotated[str, StringConstraints(pattern=RATER)]
    effect: str
    scene: str
    left: str
    right: str
    left_clip: str
    right_clip: str
    choice: Choice
    seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _of_two(self) -> Self:
        if self.left == self.right:
            raise ValueError(f"{self.left} was compared with itself; remove the line")
        return self

    @property
    def cell(self) -> tuple[str, str, frozenset[str]]:
        """What the answer is about, whichever side a method was on."""
        return self.effect, self.scene, frozenset((self.left, self.right))

    def for_method(self, method: str) -> int:
        """1 where `method` is the better one, -1 where the other is, 0 where neither is."""
        if self.choice not in ("left", "right"):
            return 0
        return 1 if (self.left if self.choice == "left" else self.right) == method else -1


def check_rater(name: str) -> str:
    """The name, if a file can be called so.

    Raises:
        InputError: it cannot.
    """
    if not re.match(RATER, name) or name.endswith("\n"):
        raise InputError(f"--rater {ascii(name)[:60]}: use 1 to 50 letters, digits, - and _, and begin with no sign")
    return name


def read_votes(files: RunFiles) -> list[Vote]:
    """The answers that hold, a rater's last one of each cell, in an order that does not depend on when they came.

    Raises:
        ConfigError: a line is no answer.
    """
    last = {(vote.rater, *vote.cell): vote for vote in files.lines("preferences", Vote)}
    return sorted(last.values(), key=lambda vote: (vote.rater, vote.effect, vote.scene, *sorted(vote.cell[2])))


@dataclass(frozen=True)
class Standing:
    """Votes of clips that the run has, and how many there are of others."""

    votes: tuple[Vote, ...]
    outdated: int


def standing(votes: Iterable[Vote], clips: Mapping[tuple[str, str, str], ClipRow]) -> Standing:
    """Parts votes by whether the run's clips are still those that were seen.

    Args:
        clips: (method, effect, scene) -> its row.
    """
    kept, outdated = [], 0
    for vote in votes:
        rows = [clips.get((method, vote.effect, vote.scene)) for method in (vote.left, vote.right)]
        if [None if row is None else row.clip for row in rows] == [vote.left_clip, vote.right_clip]:
            kept.append(vote)
        else:
            outdated += 1
    return Standing(tuple(kept), outdated)


class VoteLog(LineFile):
    """The one writer of a rater's answers; each is on disk when `keep` returns.

    Raises:
        InputError: the run is not on this machine, or the same rater is being asked already.
        OutputError: the folder cannot be written.
    """

    def __init__(self, files: RunFiles, rater: str) -> None:
        if "://" in files.folder:
            raise InputError(f"{files.folder}: answers are kept in a local folder; copy the run here first")
        super().__init__(files.path(f"preferences/{check_rater(rater)}.jsonl"))

    def keep(self, vote: Vote) -> None:
        """Adds an answer.

        Raises:
            OutputError: it cannot be written.
        """
        self.add(lines_of([vote]))
