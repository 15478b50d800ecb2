"""How far a sweep is, and how busy its actors were."""

import json
import time
from collections.abc import Mapping
from typing import Any

from p2e.files import write_text

__all__ = ["Progress"]

EVERY_SECONDS = 5.0


class Progress:
    """Counts clips and scores as they are done, prints a line now and then, and keeps RUN/timing.json.

    An actor is busy while it renders or scores; the rest of the time between the first actor's start and the last
    clip is idle, loading of models counted as idle.
    """

    def __init__(self) -> None:
        self.clips = self.scores = self.made = self.scored = 0
        self.busy: dict[str, dict[str, float]] = {"render": {}, "metrics": {}}
        self.started = self.ended = self.said = time.monotonic()

    def begin(self, clips: int, scores: int) -> None:
        """The work begins: so many clips are to be made, and scores to be taken."""
        self.clips, self.scores = clips, scores
        self.started = self.said = time.monotonic()

    def add(self, line: Mapping[str, Any], rendered: bool, scores: int) -> None:
        """One clip is done.

        Args:
            line: of `MetricActor`, or of `ClipActor` where there are no metrics.
            rendered: it was made now.
            scores: taken of it.
        """
        if rendered:
            self.made += 1
            self._busy("render", str(line["actor"]), float(line["seconds"]))
        if "scorer" in line:
            self._busy("metrics", str(line["scorer"]), float(line["scoring_seconds"]))
        self.scored += scores
        now = time.monotonic()
        if now - self.said >= EVERY_SECONDS:
            self.said = now
            print(self.text(now), flush=True)

    def _busy(self, stage: str, actor: str, seconds: float) -> None:
        self.busy[stage][actor] = self.busy[stage].get(actor, 0.0) + seconds

    def text(self, now: float) -> str:
        """For people: what is done, the rate, the time that is left at that rate."""
        seconds = max(now - self.started, 1e-9)
        done, whole, what = (self.made, self.clips, "clips") if self.clips else (self.scored, self.scores, "scores")
        left = f", {(whole - done) * seconds / done / 60:.1f} min left" if done else ""
        counts = f"clips {self.made}/{self.clips}, scores {self.scored}/{self.scores}"
        return f"{counts}, {60 * done / seconds:.1f} {what}/min{left}"

    def end(self) -> None:
        """The work is done."""
        self.ended = time.monotonic()
        if self.made or self.scored:
            print(self.text(self.ended), flush=True)

    def timing(self, steps: int, gpu: bool) -> dict[str, Any]:
        """What stands in timing.json; idle_share is of all actors of a stage that did anything."""
        wall = self.ended - self.started
        stages = {}
        for stage, busy in self.busy.items():
            total, room = sum(busy.values()), wall * len(busy)
            idle = max(0.0, 1 - total / room) if room else None
            stages[stage] = {"actors": len(busy), "busy_s": total, "idle_share": idle}
        render = sum(self.busy["render"].values())
        return {
            "wall_s": wall, "clips": self.made, "scores": self.scored, "gpu": gpu,
            "clips_per_minute": 60 * self.made / wall if wall else None,
            "seconds_per_step": render / self.made / steps if self.made else None, "stages": stages,
        }  # fmt: skip

    def write(self, path: str, steps: int, gpu: bool) -> None:
        """Keeps the timing; a run that made nothing leaves that of the last one.

        Raises:
            OutputError: `path` cannot be written.
        """
        if self.made or self.scored:
            write_text(path, json.dumps(self.timing(steps, gpu), indent=2) + "\n")
