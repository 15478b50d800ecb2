"""The KubeRay manifests: only fields that exist, and figures that agree with each other and with what is pinned."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from cluster_files import MANIFESTS, OUTPUTS, ROOT, manifests, pinned, variables
from kubernetes_fields import KINDS, field_problems
from ray.scripts.scripts import start

RAY_KINDS = {"RayCluster", "RayJob"}


def of_kind(*kinds: str) -> list[dict[str, Any]]:
    """The manifests of some kinds."""
    return [item for item in manifests() if item["kind"] in kinds]


def cluster_spec(item: dict[str, Any]) -> dict[str, Any]:
    """A RayCluster's specification, or the one inside a RayJob."""
    return item["spec"]["rayClusterSpec"] if item["kind"] == "RayJob" else item["spec"]


def groups(item: dict[str, Any]) -> list[dict[str, Any]]:
    """Head group and worker groups."""
    spec = cluster_spec(item)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def test_every_field_exists() -> None:
    items = manifests()
    assert sorted(item["kind"] for item in items) == sorted([*(KINDS.keys() - {"RayService"}), "RayJob"])
    assert [found for item in items for found in field_problems(item, KINDS[item["kind"]], item["kind"])] == []


def train_job() -> dict[str, Any]:
    """The training job."""
    (job,) = [item for item in of_kind("RayJob") if item["metadata"]["name"] == "p2e-train"]
    return job


@pytest.mark.parametrize(
    "edit",
    [
        lambda job: job["spec"].update(rayClusterConfig=job["spec"].pop("rayClusterSpec")),
        lambda job: job["spec"].update(shutdownAfterJobFinish=True),
        lambda job: job["spec"].update(submissionMode="JobMode"),
        lambda job: cluster_spec(job)["authOptions"].update(secret="p2e-ray-token"),
        lambda job: cluster_spec(job)["workerGroupSpecs"][0].update(minReplica=4),
        lambda job: cluster_spec(job)["workerGroupSpecs"][0].update(replicas="4"),
        lambda job: cluster_spec(job)["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda job: groups(job)[1]["template"]["spec"].update(nodeselector={}),
        lambda job: groups(job)[1]["template"]["spec"]["containers"][0].update(volumes=[]),
        lambda job: groups(job)[1]["template"]["spec"]["containers"][0]["resources"]["limits"].update(memory="1TB"),
        lambda job: groups(job)[1]["template"]["spec"]["containers"][0]["livenessProbe"]["httpGet"].update(prot=1),
        lambda job: job.update(apiVersion="ray.io/v1alpha1"),
        lambda job: groups(job)[1]["template"]["spec"]["containers"][0].update(env={"A": "b"}),
        lambda job: job["spec"].update(shutdownAfterJobFinishes=1),
    ],
)
def test_a_wrong_field_does_not_pass(edit: Callable[[dict[str, Any]], None]) -> None:
    job = train_job()
    edit(job)
    assert len(field_problems(job, KINDS["RayJob"])) >= 1


def test_images_and_clusters_have_the_pinned_ray() -> None:
    version = pinned("ray")
    for item in of_kind(*RAY_KINDS):
        assert cluster_spec(item)["rayVersion"] == version
        for group in groups(item):
            for container in group["template"]["spec"]["containers"]:
                assert container["image"] == f"{OUTPUTS['P2ERepository']}:{version}"
    image = (ROOT / "ray_jobs/k8s/Dockerfile").read_text()
    assert re.findall(r"^FROM (\S+)", image, re.MULTILINE) == [f"rayproject/ray:{version}-py311-cpu"]
    assert f"$P2ERepository:{version} ." in image
    assert "--require-hashes -r requirements-cluster.txt" in image and "--require-hashes -r uv.txt" in image


def test_workers_are_whole_p4d_nodes() -> None:
    for item in of_kind(*RAY_KINDS):
        (workers,) = cluster_spec(item)["workerGroupSpecs"]
        pod = workers["template"]["spec"]
        assert pod["nodeSelector"] == {"node.kubernetes.io/instance-type": "p4d.24xlarge"}
        assert {taint["key"] for taint in pod["tolerations"]} == {"nvidia.com/gpu"}
        (container,) = pod["containers"]
        resources = container["resources"]
        # The scheduler gives a pod its cards, its huge pages and a guaranteed place only so.
        assert resources["limits"] == resources["requests"]
        assert resources["limits"]["nvidia.com/gpu"] == 8 and resources["limits"]["vpc.amazonaws.com/efa"] == 4
        assert int(resources["limits"]["cpu"]) <= 96
        env = {entry["name"]: entry["value"] for entry in container["env"]}
        profile = (ROOT / "ray_jobs/aws/profile.sh").read_text()
        for name in ("FI_PROVIDER", "FI_EFA_USE_DEVICE_RDMA", "NCCL_DEBUG", "HF_HOME"):
            assert f"export {name}={env[name]}\n" in profile
    (cluster,) = of_kind("RayCluster")
    assert cluster_spec(cluster)["workerGroupSpecs"][0]["maxReplicas"] * 8 == 32
    assert cluster_spec(cluster)["autoscalerOptions"]["version"] == "v2"
    workers = cluster_spec(train_job())["workerGroupSpecs"][0]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] == 4


def test_the_three_clusters_differ_in_their_replicas_only() -> None:
    templates = [[group["template"] for group in groups(item)] for item in of_kind(*RAY_KINDS)]
    assert len(templates) == 3 and templates[0] == templates[1] == templates[2]


def test_tokens_everywhere_from_one_secret_and_none_in_a_file() -> None:
    auth = [cluster_spec(item)["authOptions"] for item in of_kind(*RAY_KINDS)]
    assert len(auth) == 3
    assert all(options == {"mode": "token", "secretName": "p2e-ray-token"} for options in auth)
    assert not [item for item in manifests() if item["kind"] == "Secret"]
    for item in of_kind(*RAY_KINDS):
        for group in groups(item):
            # The operator sets these from the secret; one written here would win over it.
            names = {entry["name"] for entry in group["template"]["spec"]["containers"][0].get("env", [])}
            assert not names & {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
        assert cluster_spec(item)["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_volumes_and_probes_hang_together() -> None:
    (claim,) = of_kind("PersistentVolumeClaim")
    (storage,) = of_kind("StorageClass")
    assert claim["spec"]["storageClassName"] == storage["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert storage["parameters"]["fileSystemId"] == OUTPUTS["P2EFileSystem"]
    for item in of_kind(*RAY_KINDS):
        for group in groups(item):
            pod = group["template"]["spec"]
            (container,) = pod["containers"]
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
            assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
            assert {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}["shared"] == "/shared"
            memory, shm = container["resources"]["limits"]["memory"], volumes["shm"]["emptyDir"]["sizeLimit"]
            assert int(shm.removesuffix("Gi")) < int(memory.removesuffix("Gi")) / 2
            assert storage["parameters"]["uid"] == str(container["securityContext"]["runAsUser"])
            for probe in ("livenessProbe", "readinessProbe"):
                assert container[probe]["httpGet"] == {"path": "/api/healthz", "port": 52365}


def test_the_network_policy_covers_every_pod() -> None:
    (policy,) = of_kind("NetworkPolicy")
    labels = policy["spec"]["podSelector"]["matchLabels"]
    for item in of_kind(*RAY_KINDS):
        for group in groups(item):
            assert labels.items() <= group["template"]["metadata"]["labels"].items()
    peers = [peer for rule in policy["spec"]["ingress"] for peer in rule["from"]]
    assert len(peers) == 2 and all(peer for peer in peers)  # an empty peer would let everybody in


def test_ray_takes_the_start_parameters() -> None:
    known = {option.lstrip("-") for parameter in start.params for option in parameter.opts}
    for item in of_kind(*RAY_KINDS):
        for group in groups(item):
            assert set(group["rayStartParams"]) <= known
        assert cluster_spec(item)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_jobs_end_their_clusters() -> None:
    jobs = of_kind("RayJob")
    assert {job["spec"]["entrypoint"].split()[2] for job in jobs} == {"ray_jobs.prepare", "ray_jobs.train"}
    for job in jobs:
        spec = job["spec"]
        assert spec["shutdownAfterJobFinishes"] and spec["activeDeadlineSeconds"] > 0 and spec["backoffLimit"] > 0
        # Where the image has the project, and PYTHONPATH with it.
        assert "--config /p2e/ray_jobs/configs/" in spec["entrypoint"]
    image = (ROOT / "ray_jobs/k8s/Dockerfile").read_text()
    assert "WORKDIR /p2e\n" in image and "ENV PYTHONPATH=/p2e\n" in image


def test_jobs_keep_the_operators_rules() -> None:
    """What KubeRay 1.7 refuses though the fields would pass (ray-operator/controllers/ray/utils/validation.go)."""
    for job in of_kind("RayJob"):
        spec = job["spec"]
        assert spec["submissionMode"] == "K8sJobMode"
        assert not spec.keys() & {"clusterSelector", "deletionStrategy"}  # they exclude retries and shutdown
        # The network policy lets the submitter in by its label; the operator gives it its command and the token.
        submitter = spec["submitterPodTemplate"]
        head = cluster_spec(job)["headGroupSpec"]["template"]
        assert submitter["metadata"]["labels"] == head["metadata"]["labels"]
        (container,) = submitter["spec"]["containers"]
        assert container["image"] == head["spec"]["containers"][0]["image"] and "command" not in container
        assert submitter["spec"]["restartPolicy"] == "Never"
        assert (
            re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", job["metadata"]["name"]) and len(job["metadata"]["name"]) < 40
        )
    for item in of_kind(*RAY_KINDS):
        # Tokens need Ray 2.52; the autoscaler sets its own service account and restart policy on the head.
        assert tuple(map(int, cluster_spec(item)["rayVersion"].split("."))) >= (2, 52, 0)
        assert not cluster_spec(item)["headGroupSpec"]["template"]["spec"].keys() & {
            "serviceAccountName",
            "restartPolicy",
        }


def test_manifests_ask_for_what_the_stack_gives() -> None:
    asked = set().union(*(variables(path) for path in MANIFESTS))
    assert asked == {"P2ERepository", "P2EFileSystem"}
