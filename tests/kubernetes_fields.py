"""Fields of the Kubernetes and KubeRay objects that the project writes, and a check that no other key is used.

The API server prunes a key it does not know without a word, so a misspelt one would do nothing. Written down from the
Go types of KubeRay 1.7.0 (ray-operator/apis/ray/v1/: raycluster_types.go, rayjob_types.go, rayservice_types.go) and
from the Kubernetes API reference (core/v1, networking.k8s.io/v1, storage.k8s.io/v1): of the long structures, the
fields in use and their likely neighbours.

A field's form: a type for a scalar, QUANTITY, one set for allowed words, [form] for a list, a dict for an object, or
Map(form) for free keys.
"""

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Map:
    """An object with free keys."""

    values: Any


QUANTITY = re.compile(r"\d+(\.\d+)?(m|Ki|Mi|Gi|Ti|k|M|G|T)?")

METADATA = {"name": str, "namespace": str, "labels": Map(str), "annotations": Map(str)}
SELECTOR = {"matchLabels": Map(str), "matchExpressions": [{"key": str, "operator": str, "values": [str]}]}
KEY_OF = {"name": str, "key": str, "optional": bool}
ENV = [
    {
        "name": str,
        "value": str,
        "valueFrom": {"secretKeyRef": KEY_OF, "configMapKeyRef": KEY_OF, "fieldRef": {"fieldPath": str}},
    }
]
RESOURCES = {"limits": Map(QUANTITY), "requests": Map(QUANTITY)}
SECURITY = {
    "allowPrivilegeEscalation": bool,
    "capabilities": {"add": [str], "drop": [str]},
    "privileged": bool,
    "readOnlyRootFilesystem": bool,
    "runAsGroup": int,
    "runAsNonRoot": bool,
    "runAsUser": int,
}
PROBE = {
    "exec": {"command": [str]},
    "httpGet": {"path": str, "port": int, "scheme": {"HTTP", "HTTPS"}},
    "tcpSocket": {"port": int},
    "failureThreshold": int,
    "initialDelaySeconds": int,
    "periodSeconds": int,
    "successThreshold": int,
    "terminationGracePeriodSeconds": int,
    "timeoutSeconds": int,
}
CONTAINER = {
    "name": str,
    "image": str,
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "command": [str],
    "args": [str],
    "workingDir": str,
    "env": ENV,
    "envFrom": [{"secretRef": {"name": str}, "configMapRef": {"name": str}}],
    "ports": [{"name": str, "containerPort": int, "protocol": {"TCP", "UDP"}}],
    "resources": RESOURCES,
    "securityContext": SECURITY,
    "livenessProbe": PROBE,
    "readinessProbe": PROBE,
    "startupProbe": PROBE,
    "lifecycle": {"preStop": {"exec": {"command": [str]}}},
    "volumeMounts": [{"name": str, "mountPath": str, "subPath": str, "readOnly": bool}],
}
VOLUME = {
    "name": str,
    "emptyDir": {"medium": {"Memory", "HugePages"}, "sizeLimit": QUANTITY},
    "persistentVolumeClaim": {"claimName": str, "readOnly": bool},
    "secret": {"secretName": str, "defaultMode": int, "items": [{"key": str, "path": str, "mode": int}]},
    "configMap": {"name": str},
    "hostPath": {"path": str, "type": str},
}
POD = {
    "affinity": {"nodeAffinity": dict, "podAffinity": dict, "podAntiAffinity": dict},
    "automountServiceAccountToken": bool,
    "containers": [CONTAINER],
    "imagePullSecrets": [{"name": str}],
    "initContainers": [CONTAINER],
    "nodeSelector": Map(str),
    "priorityClassName": str,
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "securityContext": {"fsGroup": int, "runAsGroup": int, "runAsNonRoot": bool, "runAsUser": int},
    "serviceAccountName": str,
    "terminationGracePeriodSeconds": int,
    "tolerations": [
        {"key": str, "operator": {"Exists", "Equal"}, "value": str, "effect": {"NoSchedule", "NoExecute"}},
    ],
    "volumes": [VOLUME],
}
TEMPLATE = {"metadata": METADATA, "spec": POD}

HEAD_GROUP = {
    "enableIngress": bool,
    "headService": dict,
    "ingressOptions": dict,
    "labels": Map(str),
    "rayStartParams": Map(str),
    "resources": Map(str),
    "serviceType": {"ClusterIP", "NodePort", "LoadBalancer"},
    "template": TEMPLATE,
}
WORKER_GROUP = {
    "groupName": str,
    "idleTimeoutSeconds": int,
    "labels": Map(str),
    "maxReplicas": int,
    "minReplicas": int,
    "numOfHosts": int,
    "priority": int,
    "rayStartParams": Map(str),
    "replicas": int,
    "resources": Map(str),
    "scaleStrategy": {"workersToDelete": [str]},
    "template": TEMPLATE,
}
CLUSTER_SPEC = {
    "authOptions": {"mode": {"token", "disabled"}, "secretName": str, "enableK8sTokenAuth": bool},
    "autoscalerOptions": {
        "env": ENV,
        "idleTimeoutSeconds": int,
        "image": str,
        "imagePullPolicy": str,
        "resources": RESOURCES,
        "securityContext": SECURITY,
        "upscalingMode": {"Conservative", "Default", "Aggressive"},
        "version": {"v1", "v2"},
    },
    "enableInTreeAutoscaling": bool,
    "gcsFaultToleranceOptions": dict,
    "headGroupSpec": HEAD_GROUP,
    "managedBy": str,
    "networkPolicy": dict,
    "rayVersion": str,
    "suspend": bool,
    "tlsOptions": {"enabled": bool},
    "upgradeStrategy": {"type": {"Recreate", "None"}},
    "workerGroupSpecs": [WORKER_GROUP],
}
JOB_SPEC = {
    "activeDeadlineSeconds": int,
    "backoffLimit": int,
    "clusterSelector": Map(str),
    "entrypoint": str,
    "entrypointNumCpus": float,
    "entrypointNumGpus": float,
    "entrypointResources": str,
    "jobId": str,
    "managedBy": str,
    "metadata": Map(str),
    "preRunningDeadlineSeconds": int,
    "rayClusterSpec": CLUSTER_SPEC,
    "runtimeEnvYAML": str,
    "shutdownAfterJobFinishes": bool,
    "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
    "submitterConfig": {"backoffLimit": int},
    "submitterPodTemplate": TEMPLATE,
    "suspend": bool,
    "ttlSecondsAfterFinished": int,
}
SERVICE_SPEC = {
    "excludeHeadPodFromServeSvc": bool,
    "managedBy": str,
    "rayClusterConfig": CLUSTER_SPEC,
    "rayClusterDeletionDelaySeconds": int,
    "serveConfigV2": str,
    "serveService": dict,
    "suspend": bool,
    "upgradeStrategy": {
        "type": {"NewCluster", "NewClusterWithIncrementalUpgrade", "None"},
        "clusterUpgradeOptions": dict,
    },
}
PEER = {
    "podSelector": SELECTOR,
    "namespaceSelector": SELECTOR,
    "ipBlock": {"cidr": str, "except": [str]},
}
PORTS = [{"protocol": {"TCP", "UDP"}, "port": int, "endPort": int}]


def kind(version: str, name: str, **fields: Any) -> dict[str, Any]:
    """The form of an object: its version and kind as the only words allowed there."""
    return {"apiVersion": {version}, "kind": {name}, "metadata": METADATA, **fields}


KINDS = {
    "RayCluster": kind("ray.io/v1", "RayCluster", spec=CLUSTER_SPEC),
    "RayJob": kind("ray.io/v1", "RayJob", spec=JOB_SPEC),
    "RayService": kind("ray.io/v1", "RayService", spec=SERVICE_SPEC),
    "PersistentVolumeClaim": kind(
        "v1",
        "PersistentVolumeClaim",
        spec={
            "accessModes": [{"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"}],
            "resources": RESOURCES,
            "storageClassName": str,
            "volumeMode": str,
            "volumeName": str,
        },
    ),
    "StorageClass": kind(
        "storage.k8s.io/v1",
        "StorageClass",
        allowVolumeExpansion=bool,
        mountOptions=[str],
        parameters=Map(str),
        provisioner=str,
        reclaimPolicy={"Retain", "Delete"},
        volumeBindingMode={"Immediate", "WaitForFirstConsumer"},
    ),
    "NetworkPolicy": kind(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        spec={
            "podSelector": SELECTOR,
            "policyTypes": [{"Ingress", "Egress"}],
            "ingress": [{"from": [PEER], "ports": PORTS}],
            "egress": [{"to": [PEER], "ports": PORTS}],
        },
    ),
}


def field_problems(value: Any, form: Any, where: str = "") -> list[str]:
    """Keys that are not fields, and values not of their field's form; each with its place."""
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return [f"{where}: {value!r} is no object"]
        unknown = [f"{where}.{key}: unknown" for key in value if key not in form]
        return unknown + [
            found for key in value if key in form for found in field_problems(value[key], form[key], f"{where}.{key}")
        ]
    if isinstance(form, Map):
        if not isinstance(value, dict):
            return [f"{where}: {value!r} is no object"]
        return [found for key in value for found in field_problems(value[key], form.values, f"{where}.{key}")]
    if isinstance(form, list):
        if not isinstance(value, list):
            return [f"{where}: {value!r} is no list"]
        return [found for i, item in enumerate(value) for found in field_problems(item, form[0], f"{where}[{i}]")]
    if isinstance(form, set):
        return [] if value in form else [f"{where}: {value!r} is none of {sorted(form)}"]
    if form is QUANTITY:
        fine = not isinstance(value, bool) and QUANTITY.fullmatch(str(value))
        return [] if fine else [f"{where}: {value!r} is no quantity"]
    # YAML's true is an int in Python, but not in Kubernetes.
    fine = isinstance(value, form) and (form is bool or not isinstance(value, bool))
    return [] if fine else [f"{where}: {value!r} is no {form.__name__}"]
