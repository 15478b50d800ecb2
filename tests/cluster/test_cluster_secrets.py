"""What reaches a cluster: no secret is written down, and nothing is open to the outside."""

import re
from typing import Any

import yaml
from cluster_files import LAUNCHER, ROOT, STACK

SECRETS = [
    r"AKIA[0-9A-Z]{16}",  # an AWS access key
    r"-----BEGIN [A-Z ]*PRIVATE KEY",
    r"(?i)(token|secret|password|api_key)['\"]?\s*[:=]\s*['\"]?[A-Za-z0-9+/_-]{20,}",
    r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b",
    r"\b(?:ami|subnet|sg|fs|vpc)-[0-9a-f]{8,17}\b",  # somebody's own account
    r"\b\d{12}\.dkr\.ecr\b",
]


class CloudFormation(yaml.SafeLoader):
    """YAML with CloudFormation's short functions, kept as {"!Ref": value}."""


def function(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    """A tagged value as a one-key dict."""
    assert isinstance(node, yaml.ScalarNode)
    return {f"!{suffix}": loader.construct_scalar(node)}


CloudFormation.add_multi_constructor("!", function)


def references(value: Any) -> set[str]:
    """Every name that a part of the template refers to."""
    if isinstance(value, list):
        return set().union(*map(references, value)) if value else set()
    if not isinstance(value, dict):
        return set()
    found = set().union(*map(references, value.values())) if value else set()
    if "!Ref" in value:
        found.add(value["!Ref"])
    if "!GetAtt" in value:
        found.add(value["!GetAtt"].split(".")[0])
    if "!Sub" in value:
        found |= {name.split(".")[0] for name in re.findall(r"\$\{([^}]+)\}", value["!Sub"])}
    return found


def stack() -> dict[str, Any]:
    """The CloudFormation template."""
    return yaml.load(STACK.read_text(), Loader=CloudFormation)  # a subclass of SafeLoader


def of_type(kind: str) -> dict[str, dict[str, Any]]:
    """Resources of one type, their properties by name."""
    return {name: item.get("Properties", {}) for name, item in stack()["Resources"].items() if item["Type"] == kind}


def test_no_secret_and_no_account_is_written_down() -> None:
    files = [
        LAUNCHER,
        *(path for path in (ROOT / "ray_jobs").rglob("*") if path.suffix in {".yaml", ".sh", ".txt", ""}),
    ]
    texts = {path: path.read_text() for path in files if path.is_file()}
    assert len(texts) >= 9
    found = [
        f"{path}: {match[0]}" for path, text in texts.items() for rule in SECRETS for match in re.finditer(rule, text)
    ]
    assert found == []
    assert re.search(SECRETS[2], "auth_token: 8f14e45fceea167a5a36dedd4bea2543")


def test_every_reference_of_the_stack_resolves() -> None:
    template = stack()
    names = set(template["Resources"]) | set(template["Parameters"])
    assert references(template) - names == {"AWS::Region", "AWS::Partition"}
    depends = {item["DependsOn"] for item in template["Resources"].values() if "DependsOn" in item}
    assert depends <= names
    # A route that is only declared routes nothing: what is not referred to must be complete in itself.
    loose = set(template["Resources"]) - references(template)
    assert all(
        template["Resources"][name]["Type"].rsplit("::", 1)[1]
        in {
            "MountTarget",
            "Route",
            "SecurityGroupEgress",
            "SecurityGroupIngress",
            "SubnetRouteTableAssociation",
            "VPCEndpoint",
            "VPCGatewayAttachment",
        }
        for name in loose
    )


def test_nothing_of_the_stack_is_open_to_the_outside() -> None:
    assert all("SecurityGroupIngress" not in group for group in of_type("AWS::EC2::SecurityGroup").values())
    itself = {"!Ref": "SecurityGroup"}
    (inside,) = of_type("AWS::EC2::SecurityGroupIngress").values()
    assert inside["GroupId"] == inside["SourceSecurityGroupId"] == itself and inside["IpProtocol"] == "-1"
    assert "CidrIp" not in inside
    # EFA's condition: all traffic to members allowed outwards too.
    (outwards,) = of_type("AWS::EC2::SecurityGroupEgress").values()
    assert outwards["GroupId"] == outwards["DestinationSecurityGroupId"] == itself and outwards["IpProtocol"] == "-1"
    assert not any("MapPublicIpOnLaunch" in subnet for subnet in of_type("AWS::EC2::Subnet").values())
    (bucket,) = of_type("AWS::S3::Bucket").values()
    assert (
        set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
        and len(bucket["PublicAccessBlockConfiguration"]) == 4
    )
    (storage,) = of_type("AWS::EFS::FileSystem").values()
    assert storage["Encrypted"] is True


def test_checkpoints_outlive_the_stack() -> None:
    for name in ("FileSystem", "Bucket"):
        assert stack()["Resources"][name]["DeletionPolicy"] == "Retain"


def test_the_head_ends_only_instances_of_its_cluster() -> None:
    name = yaml.safe_load(LAUNCHER.read_text())["cluster_name"]
    (policy,) = of_type("AWS::IAM::Role")["HeadRole"]["Policies"]
    (ends,) = [rule for rule in policy["PolicyDocument"]["Statement"] if "ec2:TerminateInstances" in rule["Action"]]
    assert ends["Condition"] == {"StringEquals": {"aws:ResourceTag/ray-cluster-name": name}}
    assert "Policies" not in of_type("AWS::IAM::Role")["WorkerRole"]
