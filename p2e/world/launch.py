"""One process a GPU, with the environment that torchrun gives, so that `p2e.world.parallel.join` finds its peers.

Not torchrun itself, because the exit code of the workers must come through: torchrun answers 1 for whatever they said,
and a call that paused could not be told from one that failed.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from p2e.errors import InputError

__all__ = ["count_gpus", "launch"]

GRACE = 120.0  # seconds between SIGTERM and SIGKILL, in which a stage saves its state
LOOK = 0.2  # seconds between looks at the workers


def count_gpus(wanted: int | None) -> int:
    """How many processes to run: all visible GPUs, or as many as wanted; 1 where there is none.

    Raises:
        InputError: there are not so many.
    """
    found = torch.cuda.device_count()
    if wanted is not None and wanted > max(found, 1):
        raise InputError(f"--gpus {wanted}: {found} are visible here; ask for as many, or leave it out for all")
    return wanted or max(found, 1)


def launch(module: str, arguments: Sequence[str], workers: int) -> int:
    """Runs `python -m module arguments` on so many workers -> their exit code, the first that is not 0.

    When one fails, the others are ended; SIGTERM is passed on to all of them.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # Workers share the processor; without a word each would take all of it, and each would repeat the notices of
    # transformers and diffusers.
    defaults = {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}
    processes: list[subprocess.Popen[bytes]] = []

    def end_all(*_: Any) -> None:
        for process in processes:
            if process.poll() is None:
                process.terminate()

    before = signal.signal(signal.SIGTERM, end_all)
    try:
        for rank in range(workers):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-m", module, *arguments]
            processes.append(subprocess.Popen(command, env=defaults | os.environ | shared | own))
        return _wait(processes, end_all)
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def _wait(processes: Sequence[subprocess.Popen[bytes]], end_all: Callable[[], None]) -> int:
    """Until all have ended, or, once one has failed, until GRACE is over -> the first failure's code."""
    code, deadline = 0, float("inf")
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        failed = [c for c in codes if c]
        if failed and not code:
            # A worker killed by a signal has minus its number.
            code, deadline = failed[0] if failed[0] > 0 else 128 - failed[0], time.monotonic() + GRACE
            end_all()
        if None not in codes:
            break
        time.sleep(LOOK)
    return code
