"""Stages that make one another's inputs, and the record of what was made: which are done, and which must run again.

A stage's hash is that of its resolved settings, its version, the tables and pictures of the project that it reads, and
the contents of its inputs. Contents, not the hashes of the stages that made them: training on a GPU is not repeatable
to the bit, so a stage made anew with the same hash still makes what rests on it stale; and one that comes out the same
does not.

In the folder DIR, `stages.json` keeps a record a stage. An unfinished stage lives in DIR/.work/STAGE: what it has
made, its state for going on, and its progress; its outputs are renamed into DIR when all of them are there.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from p2e.config import Settings
from p2e.errors import InputError
from p2e.files import read_text, sha256, write_text
from p2e.world.parallel import Worker
from p2e.world.pause import Pause

__all__ = ["Job", "Ledger", "Record", "Stage", "Verdict", "digest"]

RECORDS, WORK = "stages.json", ".work"


def digest(value: Any) -> str:
    """SHA-256 of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Job:
    """One run of a stage, as its function sees it.

    Attributes:
        out: where the stages before it have written.
        made: where it writes its outputs, under the names they will have in `out`.
        state: a folder that stays when the run is paused or cut off, and is gone when it ends.
        settings: resolved; of the stage's own model.
    """

    out: Path
    made: Path
    state: Path
    worker: Worker
    settings: Any
    pause: Pause


@dataclass(frozen=True)
class Stage:
    """A step of making the world.

    Attributes:
        settings: resolves changes of the settings; raises ConfigError.
        make: does the work; on all workers.
        inputs: stages whose outputs it reads.
        outputs: files and folders, relative to DIR.
        version: raised when its code comes to make something else.
        data: what it reads of the project itself, as plain values.
        saves: it looks at `Job.pause` and keeps its state.
    """

    name: str
    settings: Callable[[Mapping[str, Any]], Settings]
    make: Callable[[Job], None]
    outputs: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    version: int = 1
    data: Callable[[], Any] = dict
    saves: bool = False


class Record(Settings):
    """How a stage was made; `inputs` and `outputs` hold digests."""

    hash: str
    version: int
    settings: dict[str, Any]
    data: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    seconds: float
    workers: int
    device: str
    p2e_version: str
    commit: str | None
    finished: str


class Progress(Settings):
    """How far an unfinished run came: of which hash, in how many seconds, and whether it was forced."""

    hash: str
    seconds: float = 0.0
    forced: bool = False


@dataclass(frozen=True)
class Verdict:
    """A stage is done, or must run, for the reason given; `hash` and `parts` are those of the run."""

    state: Literal["done", "stale", "paused", "missing"]
    reason: str
    hash: str
    parts: dict[str, Any]


class Ledger:
    """The records of a folder. Stages may run side by side, on one GPU each: each changes its own record alone.

    Raises:
        InputError: its stages.json is damaged.
    """

    def __init__(self, out: Path, stages: Mapping[str, Stage]) -> None:
        self.out, self.stages, self.path = out, stages, out / RECORDS
        self.records = self._read()

    def _read(self) -> dict[str, Record]:
        if not self.path.exists():
            return {}
        try:
            values = dict(json.loads(read_text(self.path)))
            return {name: Record.parse(value) for name, value in values.items()}
        except (ValueError, TypeError):
            raise InputError(f"{self.path}: damaged; remove it, and all stages are made anew") from None

    def work(self, name: str) -> Path:
        return self.out / WORK / name

    def progress(self, name: str) -> Progress | None:
        """How far an unfinished run came, None where there is none."""
        path = self.work(name) / "progress.json"
        with contextlib.suppress(ValueError):  # a damaged one is none
            return Progress.parse(json.loads(read_text(path))) if path.exists() else None

    def trouble(self, name: str) -> str:
        """What is wrong with the outputs of a stage that has a record; "" if they are as they were made."""
        for path, expected in self.records[name].outputs.items():
            if not (self.out / path).is_file():
                return f"{path} is gone"
            if sha256(self.out / path) != expected:
                return f"{path} is not what the stage wrote"
        return ""

    def check_inputs(self, stage: Stage) -> None:
        """Raises InputError, which names the stage to run, where an input is not there as it was made."""
        for name in stage.inputs:
            problem = "not made yet" if name not in self.records else self.trouble(name)
            if problem:
                raise InputError(f"{self.out}: {stage.name} needs {name}: {problem}; run the stage {name} first")

    def judge(self, stage: Stage, settings: Settings) -> Verdict:
        """Whether a stage must run with these settings on the inputs that are there."""
        parts: dict[str, Any] = {
            "settings": settings.model_dump(mode="json"), "version": stage.version, "data": digest(stage.data()),
            "inputs": {name: digest(self.records[name].outputs) for name in stage.inputs if name in self.records},
        }  # fmt: skip
        made_from = digest({"name": stage.name, **parts})
        record, progress = self.records.get(stage.name), self.progress(stage.name)
        state, reason = "done", "unchanged"
        if record is None:
            state, reason = "missing", "not made yet"
        elif record.hash != made_from:
            state, reason = "stale", ", ".join(_changes(record, parts))
        elif problem := self.trouble(stage.name):
            state, reason = ("missing" if problem.endswith("gone") else "stale"), problem
        if progress is not None and progress.hash == made_from and (state != "done" or progress.forced):
            state, reason = "paused", f"after {progress.seconds:.0f} s"
        return Verdict(state, reason, made_from, parts)

    def begin(self, stage: Stage, verdict: Verdict, force: bool) -> None:
        """Makes the stage's folders; the state of a run with another hash goes, and that of any run if forced."""
        work, progress = self.work(stage.name), self.progress(stage.name)
        keep = progress is not None and progress.hash == verdict.hash and (progress.forced or not force)
        if not keep:
            shutil.rmtree(work, ignore_errors=True)
            progress = Progress(hash=verdict.hash, forced=force)
        shutil.rmtree(work / "made", ignore_errors=True)
        for folder in ("made", "state"):
            (work / folder).mkdir(parents=True, exist_ok=True)
        assert progress is not None
        write_text(work / "progress.json", progress.to_json())

    def spent(self, name: str, seconds: float) -> float:
        """Adds to the seconds of an unfinished run -> all of them."""
        progress = self.progress(name)
        assert progress is not None
        progress = progress.model_copy(update={"seconds": progress.seconds + seconds})
        write_text(self.work(name) / "progress.json", progress.to_json())
        return progress.seconds

    def accept(self, stage: Stage, verdict: Verdict, **facts: Any) -> None:
        """Renames the outputs into place and writes the record, with the facts that `Record` asks for."""
        work = self.work(stage.name)
        outputs: dict[str, str] = {}
        for output in stage.outputs:
            for path in _files(work / "made" / output):
                outputs[path.relative_to(work / "made").as_posix()] = sha256(path)
        # Between the first rename and the last nothing claims to be done.
        self._change(stage.name, None)
        for output in stage.outputs:
            target, old = self.out / output, work / "old" / output
            for folder in (target.parent, old.parent):
                folder.mkdir(parents=True, exist_ok=True)
            if target.exists():
                target.rename(old)
            (work / "made" / output).rename(target)
        self._change(stage.name, Record(hash=verdict.hash, outputs=outputs, **verdict.parts, **facts))
        shutil.rmtree(work)
        with contextlib.suppress(OSError):  # other stages are under way
            work.parent.rmdir()

    def adopt(self, stage: Stage, verdict: Verdict, **facts: Any) -> None:
        """Records what stands in the folder as the stage's outputs, made elsewhere.

        Raises:
            InputError: an output is not there.
        """
        outputs: dict[str, str] = {}
        for output in stage.outputs:
            if not (self.out / output).exists():
                raise InputError(f"{self.out / output}: not there, so {stage.name} cannot be adopted; copy it")
            for path in _files(self.out / output):
                outputs[path.relative_to(self.out).as_posix()] = sha256(path)
        self._change(stage.name, Record(hash=verdict.hash, outputs=outputs, **verdict.parts, **facts))

    def _change(self, name: str, record: Record | None) -> None:
        """Writes or removes one record, and takes up what runs beside this one have written since."""
        with _locked(self.out):
            self.records = self._read()
            self.records.pop(name, None)
            if record is not None:
                self.records[name] = record
            ordered = {n: self.records[n].model_dump(mode="json") for n in self.stages if n in self.records}
            write_text(self.path, json.dumps(ordered, indent=1) + "\n")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a folder's lock, which the system frees however the process ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _files(path: Path) -> list[Path]:
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    if not found:
        raise RuntimeError(f"{path}: the stage should have made this")
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _changes(record: Record, parts: Mapping[str, Any]) -> Iterator[str]:
    """What differs between a record and the parts of a new hash, in words."""
    old, new = dict(_flat(record.settings)), dict(_flat(parts["settings"]))
    for key in [*new, *(old.keys() - new.keys())]:
        if old.get(key) != new.get(key):
            yield f"{key} was {json.dumps(old.get(key))} and is {json.dumps(new.get(key))}"
    if record.version != parts["version"]:
        yield f"its code has changed (version {record.version}, now {parts['version']})"
    if record.data != parts["data"]:
        yield "the project's tables or pictures have changed"
    for name in [*parts["inputs"], *(record.inputs.keys() - parts["inputs"].keys())]:
        if record.inputs.get(name) != parts["inputs"].get(name):
            yield f"{name} was made anew"
