"""The folder of a run: what was to be done, the clips, and their scores. A sweep writes it, a report reads it.

    RUN/suite.json              the suite as it was resolved
    RUN/images/SCENE.png        first frames
    RUN/clips.jsonl             a `ClipRow` for every method, effect and scene, in that order
    RUN/clips/KEY.mp4           a clip, named by a digest of all it shows; rows whose clips are equal share it
    RUN/scores/NAME.jsonl       `Score`s, in several files; of two with one key the later holds, by file, then by line
    RUN/preferences/NAME.jsonl  what a person preferred; see `eval.preferences.votes`

All of it is local or behind an fsspec URL. A line that a killed writer left half-written is passed over.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, TypeVar

import fsspec
from pydantic import Field

from eval.suite import Suite
from p2e.config import Settings
from p2e.errors import ConfigError, InputError
from p2e.files import read_text

__all__ = ["ClipRow", "RunFiles", "Score", "by_cell", "lines_of"]

SomeSettings = TypeVar("SomeSettings", bound=Settings)


class ClipRow(Settings):
    """One clip of a run.

    Attributes:
        method, effect, scene: by title, name and id.
        prompt: that it was rendered with.
        clip: the key of its file; None where it could not be rendered, for the reason in `error`.
        image: first frame, below the run's folder.
    """

    method: str
    effect: str
    scene: str
    prompt: str
    image: str
    clip: str | None
    error: str = ""

    @property
    def video(self) -> str | None:
        """Below the run's folder."""
        return None if self.clip is None else f"clips/{self.clip}.mp4"


class Score(Settings):
    """What a metric or the judge says of a clip.

    Attributes:
        key: digest of all it depends on: the clip's and the image's bytes, the prompt, the recipe, the weights.
        clip: the key of the clip's file.
        effect: the effect that it was scored for; a clip may be held to several prompts.
        metric: its name, such as "clip_score"; the judge's are "judge" and, of single criteria, "judge.effect" ...
        recipe: name and version of how it is computed.
        value: None where it could not be, for the reason in `error`, "code: words".
        details: whatever else is known: frames seen, words cut off, the judge's reason.
    """

    key: str
    clip: str
    effect: str
    metric: str
    recipe: str
    value: float | None = Field(default=None, allow_inf_nan=False)
    error: str = ""
    details: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class RunFiles:
    """A run's folder."""

    folder: str

    @classmethod
    def of(cls, folder: object) -> Self:
        return cls(str(folder).rstrip("/"))

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}"

    @cached_property
    def suite(self) -> Suite:
        """The suite.

        Raises:
            InputError: the folder is no run's.
        """
        try:
            return Suite.parse(json.loads(read_text(self.path("suite.json"))), self.path("suite.json"))
        except (InputError, ValueError, ConfigError) as error:
            if isinstance(error, ConfigError):
                raise
            raise InputError(f"{self.folder}: no suite.json of a run in it; give the folder of a run") from None

    def clips(self) -> list[ClipRow]:
        """All rows; none where nothing was rendered yet."""
        text = self._text("clips.jsonl")
        return [ClipRow.parse(value, self.path("clips.jsonl")) for value in _lines(text)]

    def scores(self) -> dict[str, Score]:
        """By key."""
        return {score.key: score for score in self.lines("scores", Score)}

    def lines(self, folder: str, kind: type[SomeSettings]) -> Iterator[SomeSettings]:
        """Those of all JSONL files of a folder of the run, by file, then by line; none where there is no folder.

        Raises:
            ConfigError: a line is of another kind.
        """
        for name in self._names(folder):
            for value in _lines(self._text(f"{folder}/{name}")):
                yield kind.parse(value, self.path(f"{folder}/{name}"))

    def _names(self, folder: str) -> list[str]:
        system, inner = fsspec.core.url_to_fs(self.path(folder))
        if not system.isdir(inner):
            return []
        names = (str(path).rpartition("/")[2] for path in system.ls(inner, detail=False))
        return sorted(name for name in names if name.endswith(".jsonl"))

    def _text(self, name: str) -> str:
        system, inner = fsspec.core.url_to_fs(self.path(name))
        return system.cat_file(inner).decode("utf-8", "replace") if system.exists(inner) else ""


def _lines(text: str) -> Iterator[Any]:
    """The objects of JSONL; a last line without its end is a killed writer's."""
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except ValueError:
            if number < len(lines):
                continue  # written over by the writer that came after the killed one
            return


def lines_of(values: Iterable[Settings]) -> str:
    """JSONL."""
    return "".join(json.dumps(value.model_dump(mode="json"), ensure_ascii=False) + "\n" for value in values)


def by_cell(clips: Iterable[ClipRow], scores: Mapping[str, Score]) -> dict[tuple[str, str, str, str], Score]:
    """(method, effect, scene, metric) -> score, of every clip that has one."""
    of_clip: dict[tuple[str, str], list[Score]] = {}
    for score in scores.values():
        of_clip.setdefault((score.clip, score.effect), []).append(score)
    return {
        (row.method, row.effect, row.scene, score.metric): score
        for row in clips
        if row.clip is not None
        for score in of_clip.get((row.clip, row.effect), [])
    }
