"""A training job of seconds on a small real library, for tests with Ray."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_inputs import KeptEncoder, TinyInputs
from tiny_training import TinyRun

from p2e.config import TrainConfig
from ray_jobs.training.config import TrainJob

SETTINGS: dict[str, Any] = {
    "steps": 8, "micro_batches": 4, "sites_per_step": 3, "effects_per_step": 2, "resident_gb": 0, "ema": 0.8,
    "decay": "cosine", "checkpoint_every": 2, "hypernet": {"width": 16, "latents": 2},
}  # fmt: skip


@dataclass(frozen=True)
class SampleFile:
    """A worker's log of samples, and the process that wrote it."""

    path: Path
    start: int
    rank: int
    process: int

    def lines(self) -> list[dict[str, Any]]:
        """Its lines, without one that a killed worker left unfinished."""
        text = self.path.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


class TinyJob:
    """Jobs on one TinyRun."""

    def __init__(self, folder: Path) -> None:
        self.tiny = TinyRun(folder, uncovered="ffn.0")
        self.folder, self.settings = folder, SETTINGS
        prompts = [prompt for effect in self.tiny.library.effects for prompt in effect.prompts]
        states = self.tiny.encoder.encode(prompts)
        rows = dict(zip(prompts, zip(states.states, states.mask, strict=True), strict=True))
        self.opened = TinyInputs(self.tiny.base, folder, KeptEncoder(rows, self.tiny.encoder.width))

    def config(self, output: str, **changes: Any) -> TrainConfig:
        return self.tiny.config(output, **(SETTINGS | changes))

    def job(self, output: str, *, train: dict[str, Any] | None = None, **changes: Any) -> TrainJob:
        config = self.config(output, **(train or {})).model_dump(mode="json")
        values = {"train": config, "gpus": False, "log": {"samples": str(self.folder / f"{output}-samples")},
                  "max_failures": 2}  # fmt: skip
        return TrainJob.parse(values | changes)

    def logs(self, output: str) -> list[list[SampleFile]]:
        """Every attempt's logs of samples, one a worker, in the order in which they started."""
        found: dict[str, list[SampleFile]] = {}
        for path in sorted((self.folder / f"{output}-samples").glob("*.jsonl")):
            attempt, start, rank, process = path.stem.split("-")
            found.setdefault(attempt, []).append(SampleFile(path, int(start), int(rank), int(process)))
        return list(found.values())

    def samples(self, output: str) -> dict[int, list[list[int]]]:
        """Step -> rows that the run was trained on, in order of their place in the step. What an attempt did after
        the checkpoint that the next one started from is undone."""
        kept: dict[int, dict[int, list[int]]] = {}
        for attempt in self.logs(output):
            kept = {step: parts for step, parts in kept.items() if step < attempt[0].start}
            for line in (line for file in attempt for line in file.lines()):
                parts = kept.setdefault(line["step"], {})
                assert line["part"] not in parts, f"step {line['step']} was given micro-batch {line['part']} twice"
                parts[line["part"]] = line["row"]
        return {step: [row for _, row in sorted(parts.items())] for step, parts in sorted(kept.items())}

    def losses(self, output: str) -> list[float]:
        """Loss of every step, as TensorBoard has it."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(self.folder / output / "tensorboard"))
        events.Reload()
        values = {event.step: event.value for event in events.Scalars("train/loss")}
        return [values[step] for step in sorted(values)]


@contextmanager
def when(happened: Callable[[], bool], act: Callable[[], object], seconds: float = 300) -> Iterator[None]:
    """Does something as soon as a condition holds, while the body runs; both must come to pass."""
    done: list[BaseException | None] = []
    over = threading.Event()

    def watch() -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not over.is_set():
            if happened():
                act()
                done.append(None)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert done, "what the test waits for did not happen"
