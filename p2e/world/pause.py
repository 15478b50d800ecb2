"""When a call must stop: after the seconds it was given, or at SIGTERM, which is how machines are taken away.

A stage that keeps its state looks here between steps, saves and raises `Paused`. All workers follow the first one, so
that they stop after the same step.
"""

import math
import signal
import threading
import time
from types import FrameType
from typing import Self

from p2e.errors import P2EError
from p2e.world.parallel import Worker

__all__ = ["PAUSED", "Pause", "Paused"]

PAUSED = 75  # exit code: EX_TEMPFAIL of sysexits.h, "try again later"
EVERY = 20  # steps between looks of several workers, for whom looking is a message


class Paused(P2EError):
    """A call ended before its work did, and what there is of the work is saved."""


class Pause:
    """As a context it listens for SIGTERM; elsewhere it only reads the clock.

    Args:
        seconds: from now; None is without end.

    Attributes:
        saves: the stage that runs looks here; while none does, SIGTERM ends the process at once, with `PAUSED`.
    """

    def __init__(self, worker: Worker, seconds: float | None = None) -> None:
        self.worker = worker
        self.deadline = math.inf if seconds is None else time.perf_counter() + seconds
        self.told = self.saves = False

    def over(self) -> bool:
        """What this process knows by itself; only the first worker's view counts."""
        return self.told or time.perf_counter() > self.deadline

    def due(self, step: int) -> bool:
        """Whether to stop after `step` steps: the same on all workers, which all must ask."""
        if self.worker.size == 1:
            return self.over()
        return step % EVERY == 0 and self.worker.same_on_all(float(self.over())) > 0

    def __enter__(self) -> Self:
        self.before = None
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no signals
            self.before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.told = True
        if not self.saves:
            raise SystemExit(PAUSED)
