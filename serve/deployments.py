"""The four deployments of Ray Serve, each a few lines over the part that does its work:

gateway     meets callers              scales by requests under way
predictor   prompts to LoRAs           scales by prompts under way; those that wait share a pass
renderer    LoRAs and pictures to clips   scales by jobs that have not ended, one at a time each
dispatcher  brings jobs to renderers   one

Heavy libraries are imported where a replica needs them: a gateway starts without PyTorch's CUDA part.
"""

import asyncio
import os
from typing import Any

from ray import serve

from serve.dispatcher import DispatcherSettings, Tickets, repeated, sweep
from serve.edge import Edge
from serve.errors import ApiError, Changed
from serve.gateway import build_app
from serve.keys import open_keys
from serve.outbox import Outbox
from serve.remote import RemotePredictor
from serve.retention import Retention
from serve.services import GatewaySettings, Identity, Made, Services
from serve.settings import PredictorSettings, RendererSettings
from serve.stores import StoreSettings, open_stores
from serve.webhook_urls import WebhookSettings
from serve.webhooks import Deliverer

__all__ = ["Dispatcher", "Gateway", "Predictor", "Renderer"]


@serve.deployment(name="gateway", max_ongoing_requests=256, max_queued_requests=512)
@serve.ingress()
class Gateway:
    """The HTTP side."""

    def __init__(
        self,
        store: StoreSettings,
        settings: GatewaySettings,
        webhooks: WebhookSettings,
        keys: str | None,
        predictor: Any,
        dispatcher: Any,
    ) -> None:
        stores = open_stores(store)
        self._dispatcher = dispatcher  # nothing is asked of it; it is here to be deployed with the rest
        self._settings = settings
        self._services = Services(
            settings, stores.jobs, stores.effects, stores.artefacts,
            RemotePredictor(predictor, settings.predict_timeout_s), stores.counters,
            open_keys(keys), webhooks,
        )  # fmt: skip

    def __serve_build_asgi_app__(self) -> Any:
        settings = self._settings
        return Edge(build_app(self._services), settings.max_body_bytes, settings.body_timeout_s)


@serve.deployment(name="predictor", max_ongoing_requests=32, max_queued_requests=256)
class Predictor:
    """The hypernetwork on its base."""

    def __init__(self, store: StoreSettings, settings: PredictorSettings) -> None:
        from serve.maker import LoraMaker

        _use_cores()
        self._maker = LoraMaker(settings, open_stores(store).artefacts)
        self._maker.warm_up()
        batched: Any = self._batched
        batched.set_max_batch_size(settings.most_at_once)
        batched.set_batch_wait_timeout_s(settings.wait_s)

    def identity(self) -> Identity:
        return self._maker.identity

    async def make(self, source: dict[str, Any], artefact: str, identity: Identity) -> Made | ApiError:
        """As `Predictor.make` of the services; errors are answers, which pass from process to process as they are."""
        if identity != self._maker.identity:
            return Changed("a new version is being rolled out; try again", retry_after_s=1)
        return await self._batched((source, artefact))

    @serve.batch
    async def _batched(self, asked: list[tuple[dict[str, Any], str]]) -> list[Made | ApiError]:
        return await asyncio.to_thread(self._maker.make, asked)


@serve.deployment(name="renderer", max_ongoing_requests=1, graceful_shutdown_timeout_s=600)
class Renderer:
    """A pipeline with a LoRA slot; it does one job a call."""

    def __init__(self, store: StoreSettings, settings: RendererSettings, gateway: GatewaySettings) -> None:
        from serve.worker import VideoWorker, open_renderer

        _use_cores()
        stores = open_stores(store)
        self._worker = VideoWorker(
            open_renderer(settings, gateway.render), stores.jobs, stores.artefacts, stores.counters, settings
        )

    async def work(self, ticket: str) -> bool:
        """Does the job whose turn it is -> whether there was one."""
        return await asyncio.to_thread(self._worker.work_once, ticket)

    def check_health(self) -> None:
        if self._worker.stuck:
            raise RuntimeError("a job has been under way for far too long")


@serve.deployment(name="dispatcher", num_replicas=1)
class Dispatcher:
    """Makes out tickets and tidies up; all it knows is in the database, so that another may take its place."""

    async def __init__(
        self,
        store: StoreSettings,
        settings: DispatcherSettings,
        webhooks: WebhookSettings,
        keys: str | None,
        renderer: Any,
    ) -> None:
        stores = open_stores(store)
        self._stores = stores
        self.tickets = Tickets(stores.jobs, lambda ticket: _awaited(renderer.work.remote(ticket)), settings.tickets)
        self._deliverer = Deliverer(Outbox(stores.engine), open_keys(keys), webhooks)
        self._retention = Retention(stores.jobs, stores.effects, stores.artefacts, settings.retention)
        duties = {
            "tickets": (settings.tick_s, self.tickets.tick), "sweep": (settings.sweep_s, self._sweep),
            "webhooks": (settings.deliver_s, self._deliver), "retention": (settings.retain_s, self._retain),
        }  # fmt: skip
        self._tasks = [asyncio.create_task(repeated(name, every, do)) for name, (every, do) in duties.items()]

    async def _sweep(self) -> None:
        stores = self._stores
        self.tickets.strike(await asyncio.to_thread(sweep, stores.jobs, stores.counters, stores.artefacts.remove))

    async def _deliver(self) -> None:
        while (await asyncio.to_thread(self._deliverer.run_once)).delivered:
            pass

    async def _retain(self) -> None:
        await asyncio.to_thread(self._retention.sweep)

    def out(self) -> int:
        """Tickets that are out."""
        return self.tickets.out

    def check_health(self) -> None:
        for task in self._tasks:
            if task.done():
                raise RuntimeError("a duty has ended")


async def _awaited(response: Any) -> Any:
    return await response


def _use_cores() -> None:
    """As many threads as Ray has given this replica cores, which it says in OMP_NUM_THREADS alone."""
    import torch

    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
