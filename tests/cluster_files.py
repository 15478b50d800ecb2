"""The files that describe clusters, read as the tools that take them read them."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
LAUNCHER = ROOT / "cluster.yaml"
STACK = ROOT / "ray_jobs/aws/stack.yaml"
MANIFESTS = sorted((ROOT / "ray_jobs/k8s").glob("*.yaml"))

# What a stack gives, in the form of the real thing.
OUTPUTS = {
    "P2ERegion": "us-east-1",
    "P2EZone": "us-east-1d",
    "P2EImage": "ami-0123456789abcdef0",
    "P2ESubnet": "subnet-0123456789abcdef0",
    "P2ESecurityGroup": "sg-0123456789abcdef0",
    "P2EPlacementGroup": "p2e-PlacementGroup-ABC",
    "P2EFileSystem": "fs-0123456789abcdef0",
    "P2EBucket": "p2e-bucket-abc",
    "P2ERepository": "123456789012.dkr.ecr.us-east-1.amazonaws.com/p2e-repository-abc",
    "P2EHeadProfile": "arn:aws:iam::123456789012:instance-profile/p2e-HeadProfile-ABC",
    "P2EWorkerProfile": "arn:aws:iam::123456789012:instance-profile/p2e-WorkerProfile-ABC",
}


def variables(path: Path) -> set[str]:
    """The names that a file leaves to be filled in, `${P2E...}`, comments aside."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    return set(re.findall(r"\$\{(P2E\w+)\}", "\n".join(lines)))


def filled(path: Path) -> str:
    """The file with a stack's outputs put in, as envsubst does."""
    return re.sub(r"\$\{(P2E\w+)\}", lambda match: OUTPUTS[match[1]], path.read_text())


def launcher_config() -> dict[str, Any]:
    """cluster.yaml, filled in."""
    return yaml.safe_load(filled(LAUNCHER))


def manifests() -> list[dict[str, Any]]:
    """Every Kubernetes object of the project, filled in."""
    return [item for path in MANIFESTS for item in yaml.safe_load_all(filled(path))]


def pinned(package: str) -> str:
    """The version of a package that requirements-cluster.txt installs."""
    found = re.search(rf"^{re.escape(package)}==(\S+)", (ROOT / "requirements-cluster.txt").read_text(), re.MULTILINE)
    assert found, f"{package} is not in requirements-cluster.txt"
    return found[1]
