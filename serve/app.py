"""The endpoint as an application of Ray Serve: `serve run serve/world.yaml`, or `p2e serve` for one machine."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import model_validator
from ray.serve import Application

from p2e.config import Settings
from serve.deployments import Dispatcher, Gateway, Predictor, Renderer
from serve.dispatcher import DispatcherSettings
from serve.keys import open_keys
from serve.services import GatewaySettings
from serve.settings import PredictorSettings, RendererSettings
from serve.stores import StoreSettings
from serve.webhook_urls import WebhookSettings

__all__ = ["AppArgs", "application", "build"]


class AppArgs(Settings):
    """What a Serve config gives as `args`.

    Attributes:
        store: database and files.
        gateway: what callers are told and asked.
        keys: file of API keys (`python -m serve.keys NAME`); None lets everybody in.
        webhooks: who may be told when videos end; nobody by default.
        predictor, renderer, dispatcher: of the deployments of that name; replicas, cores and GPUs are set under
            `deployments`, as in every Serve config.
    """

    store: StoreSettings = StoreSettings()
    gateway: GatewaySettings = GatewaySettings()
    keys: str | None = None
    webhooks: WebhookSettings = WebhookSettings()
    predictor: PredictorSettings = PredictorSettings()
    renderer: RendererSettings = RendererSettings()
    dispatcher: DispatcherSettings = DispatcherSettings()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.predictor.max_rank > self.renderer.max_rank:
            raise ValueError(
                f"predictor.max_rank {self.predictor.max_rank} does not fit the renderer's slot of "
                f"{self.renderer.max_rank}; raise renderer.max_rank"
            )
        return self


def build(args: AppArgs) -> Application:
    """The application.

    Raises:
        ConfigError: the file of keys cannot be used.
    """
    return application(args)


def application(args: AppArgs, options: Mapping[str, Mapping[str, Any]] | None = None) -> Application:
    """The application with options of its deployments, by name, for whoever runs it without a Serve config.

    Raises:
        ConfigError: the file of keys cannot be used.
    """
    open_keys(args.keys)
    store, chosen = args.store.absolute(), options or {}

    def deployment(kind: Any, *bound: Any) -> Application:
        return kind.options(**chosen.get(kind.name, {})).bind(*bound)

    predictor = deployment(Predictor, store, args.predictor)
    renderer = deployment(Renderer, store, args.renderer, args.gateway)
    dispatcher = deployment(Dispatcher, store, args.dispatcher, args.webhooks, args.keys, renderer)
    return deployment(Gateway, store, args.gateway, args.webhooks, args.keys, predictor, dispatcher)
