"""The endpoint on this machine: a Ray of its own with token authentication, the applications of a config, and a wait
until they answer. For a cluster that is there, `serve deploy` does the deploying."""

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from p2e.errors import ConfigError, InputError, P2EError
from p2e.files import read_text

__all__ = ["DeployFailed", "Endpoint", "free_port", "local_endpoint", "prepare_environment", "read_config"]

PROXY_CALLBACK = "serve.edge:proxy_middlewares"
BUILDER = "serve.app:build"


@dataclass(frozen=True)
class Endpoint:
    """Where a running endpoint answers, and where its Ray shows itself to whoever has the token."""

    address: str
    dashboard: str


class DeployFailed(P2EError):
    """The applications did not come up."""


def read_config(path: str | Path, host: str | None = None, port: int | None = None) -> dict[str, Any]:
    """A Serve config file, checked to the last key of its `args`.

    Args:
        host, port: in place of those in the file.

    Raises:
        ConfigError: it cannot be read or does not fit.
    """
    from ray.serve.schema import ServeDeploySchema

    from serve.app import AppArgs

    try:
        values = yaml.safe_load(read_text(path))
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: not a Serve config; serve/world.yaml is one")
        options = {"host": host, "port": port}
        values["http_options"] = values.get("http_options", {}) | {k: v for k, v in options.items() if v is not None}
        ServeDeploySchema.model_validate(values)
    except ConfigError:
        raise
    except (yaml.YAMLError, InputError) as error:
        message = " ".join(str(error).split())
        raise ConfigError(message if str(path) in message else f"{path}: not valid YAML ({message})") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; see serve/world.yaml") from None
    for application in values["applications"]:
        if application["import_path"] == BUILDER:
            AppArgs.parse(application.get("args", {}), f"{path}: args")
    return values


@contextmanager
def local_endpoint(
    config: dict[str, Any], *, timeout_s: float = 600, tell: Callable[[str], None] = lambda _: None
) -> Iterator[Endpoint]:
    """Starts Ray and the applications -> where they answer, once they do; all of it ends with the context.

    Args:
        config: as `read_config` gives it.
        tell: called with what is being waited for.

    Raises:
        InputError: the port is taken, or the environment names another Ray cluster.
        DeployFailed: the applications do not come up, with the reason that Serve gives.
    """
    host, port = config["http_options"].get("host", "0.0.0.0"), config["http_options"].get("port", 8000)
    _check_port(host, port)
    if "RAY_ADDRESS" in os.environ:
        raise InputError("RAY_ADDRESS names a cluster; deploy there with `serve deploy`, or unset it")
    import ray
    from ray import serve
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    context = ray.init("local", log_to_driver=False, include_dashboard=True, dashboard_host="127.0.0.1")
    try:
        client = ServeSubmissionClient(f"http://{context.dashboard_url}")
        client.deploy_applications(config)
        address = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"
        _wait(client, address, timeout_s, tell)
        yield Endpoint(address, f"http://{context.dashboard_url}")
    finally:
        serve.shutdown()
        ray.shutdown()


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"port {port} of {host} cannot be used ({error.strerror}); give another --port") from None


def prepare_environment() -> None:
    """What Ray and its workers read when they are imported or start: who may talk to them, and what stands before the
    proxy. To be called before anything imports Ray."""
    root = Path(__file__).parents[1]
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    known = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if not any(name in os.environ for name in known) and not (Path.home() / ".ray" / "auth_token").is_file():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # for as long as this runs
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", PROXY_CALLBACK)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    paths = [str(root), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))


def _wait(client: Any, address: str, timeout_s: float, tell: Callable[[str], None]) -> None:
    import httpx

    deadline = time.monotonic() + timeout_s
    while True:
        applications = client.get_serve_details().get("applications", {})
        for name, found in applications.items():
            if found["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise DeployFailed(f"{name} did not start: {reason(found)}")
        waiting = [
            f"{name} {deployment['status'].lower()}"
            for found in applications.values()
            for name, deployment in found.get("deployments", {}).items()
            if deployment["status"] != "HEALTHY"
        ]
        if applications and all(found["status"] == "RUNNING" for found in applications.values()):
            try:
                if httpx.get(f"{address}/readyz", timeout=10).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            waiting = ["weights"]
        tell(", ".join(waiting) or "the application")
        if time.monotonic() > deadline:
            raise DeployFailed(f"not ready after {timeout_s:.0f} s ({', '.join(waiting)}); see the logs in /tmp/ray")
        time.sleep(0.5)


def reason(application: dict[str, Any]) -> str:
    """Why an application failed, in a line: the last of what its deployments, or it, say."""
    texts = [d.get("message", "") for d in application.get("deployments", {}).values() if d["status"] != "HEALTHY"]
    text = "\n".join([application.get("message", ""), *texts])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["no reason given"])[-1][:400]
