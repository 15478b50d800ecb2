"""A rate schedule bounded by steps and, optionally, by the clock: linear warm-up, then a cosine to 2%."""

import time

from p2e.schedule import warm_cosine
from p2e.world.parallel import Worker

__all__ = ["Schedule"]

FINAL = 0.02  # of the peak rate


class Schedule:
    """The factor on the learning rate at each step, None once the run is over.

    Args:
        steps: steps of the whole run.
        warmup: steps of linear warm-up.
        max_seconds: where given, the cosine also ends by then; all workers follow the first one's clock.
        before: seconds of the run before it was resumed.
    """

    def __init__(self, steps: int, warmup: int, max_seconds: float | None, worker: Worker, before: float = 0.0) -> None:
        self.steps, self.warmup, self.max_seconds, self.worker = steps, warmup, max_seconds, worker
        self.started = time.perf_counter() - before

    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def scale(self, step: int) -> float | None:
        done = step / self.steps
        if self.max_seconds is not None:
            done = max(done, self.worker.same_on_all(self.elapsed() / self.max_seconds))
        if done >= 1:
            return None
        return warm_cosine(step, self.warmup, done, FINAL)
