"""What the service tells Prometheus: jobs by state and wait from the database, and what all its parts have counted."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serve.counters import SECONDS, Counters, Labels
from serve.edge import App, Message, Receive, Scope, Send
from serve.jobs import JobStore
from serve.outbox import Outbox

__all__ = ["Counted", "metrics_text"]

COUNTERS = {
    "p2e_requests": "Requests by route, method and status.",
    "p2e_effect_hits": "Effects answered from the store.",
    "p2e_effect_misses": "Effects that were made.",
    "p2e_videos": "Videos that have ended, by state and error code.",
    "p2e_videos_requeued": "Videos that were taken from a lost renderer and put back.",
    "p2e_lora_hits": "Renders whose LoRA the renderer held.",
    "p2e_lora_loads": "Renders whose LoRA was read from the store.",
}
HISTOGRAMS = {
    "p2e_predict_seconds": "From asking the predictor to the stored LoRA.",
    "p2e_render_seconds": "From claiming a job to its end.",
}


def metrics_text(jobs: JobStore, counters: Counters) -> bytes:
    """All of it in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Now(jobs, counters))
    return generate_latest(registry)


class Counted:
    """ASGI middleware: counts answers by route, never by path, of which there are as many as ids."""

    def __init__(self, app: App, counters: Counters) -> None:
        self.app, self.counters = app, counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                status = str(message["status"])
                self.counters.add("p2e_requests", route=route, method=scope["method"], status=status)
            await send(message)

        await self.app(scope, receive, counted if scope["type"] == "http" else send)


class _Now(Collector):
    def __init__(self, jobs: JobStore, counters: Counters) -> None:
        self._jobs, self._counters, self._outbox = jobs, counters, Outbox(jobs.engine, jobs.clock)

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily("p2e_jobs", "Video jobs by state.", labels=["status"])
        for status, count in self._jobs.depth().items():
            waiting.add_metric([status], count)
        yield waiting
        yield GaugeMetricFamily(
            "p2e_queue_wait_seconds", "How long the first in the queue has waited.", self._jobs.longest_wait()
        )
        webhooks = GaugeMetricFamily("p2e_webhooks", "Events by what became of them.", labels=["outcome"])
        for outcome, count in self._outbox.depth().items():
            webhooks.add_metric([outcome], count)
        yield webhooks
        sums = self._counters.read()
        for name, about in COUNTERS.items():
            found = sums.get(name, {})
            family = CounterMetricFamily(name, about, labels=[label for label, _ in next(iter(found), ())])
            for labels, value in sorted(found.items()):
                family.add_metric([text for _, text in labels], value)
            yield family
        for name, about in HISTOGRAMS.items():
            yield histogram(name, about, sums.get(f"{name}_bucket", {}), sums.get(f"{name}_sum", {}).get((), 0.0))


def histogram(name: str, about: str, buckets: dict[Labels, float], total: float) -> Metric:
    """Prometheus' buckets are cumulative, those that are counted are not."""
    counts = {labels[0][1]: value for labels, value in buckets.items()}
    cumulative, found = 0.0, []
    for bound in [*(f"{bound:g}" for bound in SECONDS), "+Inf"]:
        cumulative += counts.get(bound, 0.0)
        found.append((bound, cumulative))
    return HistogramMetricFamily(name, about, found, total)
