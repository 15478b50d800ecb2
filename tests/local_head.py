"""A Ray head of one's own on this machine, with token authentication, for as long as a `with` lasts."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

ROOT = Path(__file__).parents[1]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
FAKE = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "ray-client-server-port",
    "metrics-export-port",
    "node-manager-port",
    "object-manager-port",
)


@dataclass(frozen=True)
class Head:
    """A running head: where the cluster, its job server and its node's agent listen, and the file with its token."""

    cluster: str
    address: str
    agent: str
    token_file: Path
    folder: Path

    def run(self, *command: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
        """A command as a driver on the cluster; output and errors apart."""
        return subprocess.run(
            command,
            env=token_environment(self.token_file) | {"RAY_ADDRESS": self.cluster},
            capture_output=True,
            text=True,
            timeout=120,
            cwd=cwd or self.folder,
        )

    def submit(
        self, *arguments: str, token_file: Path | None = None, timeout: float = 120
    ) -> "subprocess.CompletedProcess[str]":
        """`ray job submit` with the head's token, or with another; output and errors in `stdout`."""
        return subprocess.run(
            [*RAY, "job", "submit", "--address", self.address, *arguments],
            env=token_environment(token_file or self.token_file),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            cwd=self.folder,
        )


def token_environment(token_file: Path) -> dict[str, str]:
    """An environment as in this Python's activated venv, with token authentication and no trace of other clusters."""
    others = {"RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_JOB_CONFIG_JSON_ENV_VAR"}
    base = {key: value for key, value in os.environ.items() if key not in others}
    return base | {
        "PATH": f"{Path(sys.executable).parent}:{base['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_enable_worker_prestart": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def status(url: str, token: str | None = None) -> int:
    """The HTTP status of a GET, with a bearer token or without; 0 where nobody answers."""
    request = Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urlopen(request, timeout=5) as response:
            return response.status
    except HTTPError as error:
        return error.code
    except (URLError, ConnectionError, TimeoutError):
        return 0


def processes_under(folder: Path) -> list[int]:
    """The processes whose command line names a folder; a Ray session's all name their temporary one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:  # it ended meanwhile
                continue
            if str(folder).encode() in command:
                found.append(int(entry.name))
    return found


def end(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Ends a head as Ctrl-C does, then what is left of its session, found by its own folder."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 10
    while (left := processes_under(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for number in left:
        os.kill(number, signal.SIGKILL)


def fake_nodes(folder: Path, port: int, kinds: dict[str, dict[str, int]]) -> tuple[list[str], dict[str, str]]:
    """Options and environment with which a head's autoscaler starts nodes as processes of this machine.

    Args:
        kinds: name -> resources of a node; of each kind there may be one.
    """
    head, known = "f" * 56, {"object_store_memory": 80_000_000}
    types = {name: {"resources": size | known, "node_config": {}, "max_workers": 1} for name, size in kinds.items()}
    types["ray.head.default"] = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    provider = {"type": "external", "module": FAKE, "gcs_address": f"127.0.0.1:{port}", "head_node_id": head}
    config = {
        "cluster_name": "fake", "max_workers": len(kinds), "idle_timeout_minutes": 10, "upscaling_speed": 20,
        "provider": provider | {"launch_multiple": True}, "available_node_types": types,
        "head_node_type": "ray.head.default", "auth": {}, "file_mounts": {}, "setup_commands": [],
        "initialization_commands": [], "head_setup_commands": [], "worker_setup_commands": [],
        "head_start_ray_commands": [], "worker_start_ray_commands": [], "cluster_synced_files": [], "docker": {},
        "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [],
    }  # fmt: skip
    file = folder / "autoscaler.json"
    file.write_text(json.dumps(config))
    environment = {
        "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": head, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": head,
    }  # fmt: skip
    return [f"--autoscaling-config={file}"], environment


@contextmanager
def local_head(cpus: int = 1, nodes: dict[str, dict[str, int]] | None = None) -> Iterator[Head]:
    """Starts `ray start --head --block` with a token file, waits for its job server, ends it and all it started.

    Args:
        nodes: further nodes that an autoscaler may start, as for `fake_nodes`.
    """
    # Not pytest's folder: the sockets in there have paths of at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="p2e-", dir="/tmp"))
    token_file = folder / "token"
    token = secrets.token_hex(32)
    token_file.write_text(token)
    token_file.chmod(0o600)
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    options = [f"--{name}={number}" for name, number in ports.items()]
    log = (folder / "head.log").open("wb")
    options += [f"--temp-dir={folder}/ray", f"--num-cpus={cpus}", "--object-store-memory=100000000"]
    more, environment = fake_nodes(folder, ports["port"], nodes) if nodes else ([], {})
    options += more
    process = subprocess.Popen(
        [*RAY, "start", "--head", "--block", "--dashboard-host=127.0.0.1", "--disable-usage-stats", *options],
        env=token_environment(token_file) | environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=folder,
        start_new_session=True,
    )
    head = Head(
        f"127.0.0.1:{ports['port']}",
        f"http://127.0.0.1:{ports['dashboard-port']}",
        f"http://127.0.0.1:{ports['dashboard-agent-listen-port']}",
        token_file,
        folder,
    )
    try:
        deadline = time.monotonic() + 60
        while status(f"{head.address}/api/jobs/", token) != 200 or status(f"{head.agent}/api/healthz") != 200:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "head.log").read_text()
            time.sleep(0.2)
        yield head
    finally:
        end(process, folder)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)
