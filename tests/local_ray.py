"""A Ray cluster of two CPUs on this machine alone, for the tests of one module."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray._raylet import Config  # pyright: ignore[reportAttributeAccessIssue]

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def local_ray() -> Iterator[str]:
    """Starts the cluster and gives its address.

    Whether it asks for a token is told outright, as Ray would write one to the user's home. It does not: Ray keeps the
    first token of a process, and other modules start clusters of their own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        patch.delenv("RAY_ADDRESS", raising=False)
        Config.initialize("")  # Ray read the mode when it was imported
        ray.init(
            "local",
            num_cpus=2,
            num_gpus=0,
            object_store_memory=100 << 20,
            include_dashboard=False,
            log_to_driver=False,
        )
        try:
            yield ray.get_runtime_context().gcs_address
        finally:
            ray.shutdown()
    Config.initialize("")


def start_job(address: str, module: str, *arguments: object) -> subprocess.Popen[str]:
    """A job as its own process, on the cluster at `address`."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environment = {**os.environ, "RAY_ADDRESS": address}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)
