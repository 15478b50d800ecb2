"""The Ray session of a job, and Ray Data as the jobs use it: rows in, small rows out, failures as rows."""

import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import ray
import ray.data
from ray._raylet import Config  # pyright: ignore[reportAttributeAccessIssue]

from p2e.errors import InputError, P2EError

__all__ = ["check_resources", "connect", "exists", "failure", "remove", "stream"]


def connect() -> None:
    """Joins the cluster that the job was submitted to (RAY_ADDRESS), or starts one on this machine, for itself alone.

    Ray decides by what it finds whether a new cluster asks for a token; here it always does, unless RAY_AUTH_MODE says
    otherwise, and the token is never written to disk.
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
    ray.init(address="local" if alone else None, log_to_driver=False, logging_level=logging.WARNING)


def check_resources(cpus: float, gpus: float) -> None:
    """Finds out before the work begins that no machine can run a task: Ray would wait for one without a word.

    Raises:
        InputError: no node of the cluster has as much.
    """
    nodes: list[Mapping[str, Any]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        have = ", ".join(f"{n.get('CPU', 0):g} CPUs and {n.get('GPU', 0):g} GPUs" for n in nodes)
        raise InputError(f"a task asks for {cpus:g} CPUs and {gpus:g} GPUs, the machines have {have}; ask for less")


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


def stream(rows: Sequence[dict[str, Any]], fn: Any, *, flat: bool = False, **options: Any) -> Iterator[dict[str, Any]]:
    """What `fn` makes of each row, as rows are done. Every row is a block and thus a task of its own.

    Args:
        fn: a function, or a class for a pool of actors.
        flat: it gives a list of rows for each row.
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
    yield from run(fn, **options).iter_rows()
