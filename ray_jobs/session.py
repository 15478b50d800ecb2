"""The Ray session of a job, and Ray Data as the jobs use it: rows in, small rows out, failures as rows."""

import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import ray
import ray.data
from ray._raylet import Config  # pyright: ignore[reportAttributeAccessIssue]
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.utils import is_autoscaler_v2

from p2e.errors import InputError, P2EError

__all__ = ["NODE_WAIT_SECONDS", "check_resources", "connect", "exists", "failure", "remove", "stream"]

NODE_WAIT_SECONDS = 1800.0
"""How long a job waits for nodes that the autoscaler starts; four p4d with all their packages take up to half of it."""


def connect(*, worker_logs: bool = False) -> None:
    """Joins the cluster that the job was submitted to (RAY_ADDRESS), or starts one on this machine, for itself alone.

    Ray decides by what it finds whether a new cluster asks for a token; here it always does, unless RAY_AUTH_MODE says
    otherwise, and the token is never written to disk.

    Args:
        worker_logs: what workers print and log appears in the job's output.
    """
    if ray.is_initialized():
        return
    alone = not os.environ.get("RAY_ADDRESS")
    if alone:
        mode = os.environ.setdefault("RAY_AUTH_MODE", "token")
        places = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
        if mode == "token" and not any(map(os.environ.get, places)) and not (Path.home() / ".ray/auth_token").is_file():
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        Config.initialize("")  # Ray read the mode when it was imported
    # Without "local", Ray would wait for a cluster that died here once and left its address in /tmp/ray.
    place: dict[str, Any] = {"address": "local", "include_dashboard": False} if alone else {}
    ray.init(**place, log_to_driver=worker_logs, logging_level=logging.WARNING)


def check_resources(cpus: float, gpus: float, count: int = 1, *, wait: float = NODE_WAIT_SECONDS) -> None:
    """Finds out before the work begins that the machines cannot run it: Ray would wait for others without a word.

    Where an autoscaler can bring more (a cluster that rests at its head alone, for one), it is asked to.

    Args:
        cpus, gpus: of a task or worker.
        count: how many of them must run at once.
        wait: seconds that new nodes may take.

    Raises:
        InputError: the nodes have no room for as much, and no autoscaler brought it in time.
    """
    if _room(cpus, gpus) >= count:
        return
    asked = f"{count} x {cpus:g} CPUs and {gpus:g} GPUs" if count > 1 else f"{cpus:g} CPUs and {gpus:g} GPUs"
    # Where Ray's first autoscaler runs, it runs without nodes to start, too, and nothing tells the two apart.
    if not is_autoscaler_v2(fetch_from_server=True):
        raise InputError(f"a task asks for {asked}, the machines have {_machines()}; ask for less")
    print(f"waiting up to {wait:g} s for nodes with {asked}", file=sys.stderr, flush=True)
    request_resources(bundles=[{"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}] * count)
    try:
        deadline = time.monotonic() + wait
        while _room(cpus, gpus) < count:
            if time.monotonic() > deadline:
                raise InputError(
                    f"a task asks for {asked}; after {wait:g} s the machines have {_machines()}; ask for less, or see "
                    "`ray status` for what keeps the autoscaler from more"
                )
            time.sleep(min(2.0, wait / 10))
    finally:
        request_resources(bundles=[])  # else the nodes would stay when the work is done


def _nodes() -> list[Mapping[str, Any]]:
    """What each living node has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _room(cpus: float, gpus: float) -> int:
    """How many tasks fit the nodes, if nothing else runs there."""
    wanted = {name: size for name, size in (("CPU", cpus), ("GPU", gpus)) if size}
    return sum(min((int(node.get(name, 0) / size) for name, size in wanted.items()), default=1) for node in _nodes())


def _machines() -> str:
    return ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in _nodes())


def failure(error: BaseException) -> str:
    """One line that says what went wrong; a P2EError says it all, of others the kind is named."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, P2EError) else f"{type(error).__name__}: {text}"


def exists(path: str) -> bool:
    """Whether there is a file or folder, local or behind an fsspec URL."""
    file_system, inner = fsspec.core.url_to_fs(path)
    return file_system.exists(inner)


def remove(path: str) -> None:
    """Takes away a file or a folder with all that is in it, if it is there."""
    file_system, inner = fsspec.core.url_to_fs(path)
    if file_system.exists(inner):
        file_system.rm(inner, recursive=True)


def stream(
    rows: Sequence[dict[str, Any]], fn: Any, *, flat: bool = False, then: Sequence[tuple[Any, dict[str, Any]]] = (),
    **options: Any,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """What `fn` makes of each row, as rows are done. Every row is a block and thus a task of its own.

    Args:
        fn: a function, or a class for a pool of actors.
        flat: it gives a list of rows for each row.
        then: further stages, (fn, options), which take what the stage before gives, as it gives it; each gives a list.
        options: of `Dataset.map` or `Dataset.flat_map`: compute, num_cpus, num_gpus, fn_constructor_kwargs.
    """
    if not rows:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    dataset = ray.data.from_items(list(rows), override_num_blocks=len(rows))
    run: Callable[..., ray.data.Dataset] = dataset.flat_map if flat else dataset.map
    dataset = run(fn, **options)
    for stage, settings in then:
        dataset = dataset.flat_map(stage, **settings)
    yield from dataset.iter_rows()
