"""The configs that ship: they fit Serve and the application to the last key, and Kubernetes gets the same text."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_files import OUTPUTS, filled, pinned
from kubernetes_fields import KINDS, field_problems
from ray.serve.schema import ServeDeploySchema

from p2e.errors import ConfigError
from serve.app import AppArgs
from serve.up import read_config

SERVE = Path(__file__).parents[2] / "serve"
SERVICE = SERVE / "k8s/service.yaml"


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(filled(SERVICE)))


def deployments(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {found["name"]: found for found in config["applications"][0]["deployments"]}


@pytest.mark.parametrize("name", ["app.yaml", "world.yaml"])
def test_configs_fit_to_the_last_key(name: str) -> None:
    config = read_config(SERVE / name)
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == "serve.app:build"
    assert set(deployments(config)) == {"gateway", "predictor", "renderer", "dispatcher"}
    for found in deployments(config).values():  # Serve ignores what it does not know
        known = set(ServeDeploySchema.model_json_schema()["$defs"]["DeploymentSchema"]["properties"])
        assert set(found) <= known
    args = AppArgs.parse(config["applications"][0]["args"])
    assert args.gateway.events_s < config["http_options"]["request_timeout_s"]
    render, limits = args.gateway.render, args.gateway.limits
    assert render.frames <= limits.frames and render.steps <= limits.steps
    assert render.height * render.width <= limits.pixels


def test_a_gpu_holds_a_predictor_and_a_renderer() -> None:
    config = read_config(SERVE / "app.yaml")
    shares = {name: d["ray_actor_options"].get("num_gpus", 0) for name, d in deployments(config).items()}
    assert shares["predictor"] + shares["renderer"] == 1 and shares["gateway"] == shares["dispatcher"] == 0
    args = AppArgs.parse(config["applications"][0]["args"])
    assert args.keys is not None and args.store.database.startswith("postgresql")  # several nodes, and no open door
    renderer = deployments(config)["renderer"]
    assert renderer["autoscaling_config"]["target_ongoing_requests"] == 1 and "max_ongoing_requests" not in renderer


def test_kubernetes_gets_the_same_text() -> None:
    service, _ = manifests()
    assert service["spec"]["serveConfigV2"] == (SERVE / "app.yaml").read_text()


def test_every_field_of_the_manifests_exists() -> None:
    items = manifests()
    assert [item["kind"] for item in items] == ["RayService", "NetworkPolicy"]
    assert [found for item in items for found in field_problems(item, KINDS[item["kind"]], item["kind"])] == []
    service = items[0]
    service["spec"]["rayClusterSpec"] = service["spec"].pop("rayClusterConfig")
    assert len(field_problems(service, KINDS["RayService"])) == 1


def test_pods_give_renders_their_time_and_ray_its_settings() -> None:
    service = manifests()[0]
    cluster = service["spec"]["rayClusterConfig"]
    grace = deployments(yaml.safe_load(service["spec"]["serveConfigV2"]))["renderer"]["graceful_shutdown_timeout_s"]
    assert service["spec"]["rayClusterDeletionDelaySeconds"] > grace
    assert cluster["rayVersion"] == pinned("ray") and cluster["authOptions"]["mode"] == "token"
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["template"]["spec"]["terminationGracePeriodSeconds"] > grace
    for group in (cluster["headGroupSpec"], workers):
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"] == f"{OUTPUTS['P2ERepository']}:{pinned('ray')}"
        values = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert values["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == "serve.edge:proxy_middlewares"
        assert "PGPASSWORD" in values and values["PGPASSWORD"] is None  # from a secret


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"args": {"gateway": {"modell": "x"}}}, "gateway.modell"),
        ({"args": {"predictor": {"max_rank": 128}}}, "max_rank"),
        ({"args": {"renderer": {"dtype": "int8"}}}, "renderer.dtype"),
        ({"route_prefix": 3}, "route_prefix"),
        ({"import_path": None}, "import_path"),
    ],
)
def test_a_wrong_config_is_refused_with_its_place(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    config = yaml.safe_load((SERVE / "world.yaml").read_text())
    config["applications"][0] |= change
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=said) as error:
        read_config(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[", "a: [1", "applications: 3"])
def test_what_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        read_config(path)
    with pytest.raises(ConfigError, match="no such file"):
        read_config(tmp_path / "none.yaml")
