"""A training job of seconds on a small real library, for tests with Ray."""

import json
from collections.abc import Iterator
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


class TinyJob:
    """Jobs on one TinyRun."""

    def __init__(self, folder: Path) -> None:
        self.tiny = TinyRun(folder, uncovered="ffn.0")
        self.folder = folder
        prompts = [prompt for effect in self.tiny.library.effects for prompt in effect.prompts]
        states = self.tiny.encoder.encode(prompts)
        rows = dict(zip(prompts, zip(states.states, states.mask, strict=True), strict=True))
        self.opened = TinyInputs(self.tiny.base, folder, KeptEncoder(rows, self.tiny.encoder.width))

    def config(self, output: str, **changes: Any) -> TrainConfig:
        return self.tiny.config(output, **(SETTINGS | changes))

    def job(self, output: str, *, train: dict[str, Any] | None = None, **changes: Any) -> TrainJob:
        config = self.config(output, **(train or {})).model_dump(mode="json")
        values = {"train": config, "gpus": False, "log": {"samples": str(self.folder / f"{output}-samples")},
                  "stream": {"window": 3}, "max_failures": 2}  # fmt: skip
        return TrainJob.parse(values | changes)

    def attempts(self, output: str) -> list[tuple[float, int, int, Path]]:
        """Time, first step, process and file of every worker's log of samples, in the order in which they started."""
        found = []
        for path in (self.folder / f"{output}-samples").glob("*.jsonl"):
            attempt, start, _, process = path.stem.split("-")
            found.append((float(attempt), int(start), int(process), path))
        return sorted(found)

    def samples(self, output: str) -> dict[int, list[list[int]]]:
        """Step -> rows that it was trained on, in order of their place: what an attempt did after the checkpoint that
        the next one started from does not count."""
        kept: dict[int, dict[int, list[int]]] = {}
        for _, start, _, path in self.attempts(output):
            kept = {step: parts for step, parts in kept.items() if step < start or parts.get(-1) == [start]}
            for line in lines(path):
                parts = kept.setdefault(line["step"], {-1: [start]})
                assert line["part"] not in parts, f"step {line['step']} trained on micro-batch {line['part']} twice"
                parts[line["part"]] = line["row"]
        return {step: [row for part, row in sorted(parts.items()) if part >= 0] for step, parts in sorted(kept.items())}


def lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # the last line of a killed worker
            return
