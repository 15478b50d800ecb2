"""What a gateway works with, and what it asks of whoever predicts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import Field

from p2e.config import RenderConfig, Settings
from serve.artefacts import ArtefactStore
from serve.counters import Counters
from serve.effects import EffectStore
from serve.errors import ApiError
from serve.jobs import JobStore
from serve.keys import Keys
from serve.pictures import PictureLimits
from serve.schemas import RequestLimits
from serve.webhook_urls import WebhookSettings

__all__ = ["GatewaySettings", "Identity", "Made", "NotReady", "Predictor", "Services"]


class NotReady(ApiError):
    """The service has not loaded its weights, or has lost whoever holds them."""

    status, code = 503, "not_ready"


@dataclass(frozen=True)
class Made:
    """A LoRA file that a predictor has stored, and the seconds of the pass that it came from."""

    rank: int
    bytes: int
    sha256: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Identity:
    """Digests of a base's weights and of a hypernetwork's: the same prompt gives the same LoRA with the same two."""

    base: str
    checkpoint: str


class Predictor(Protocol):
    """Whoever turns sources of effects into LoRA files."""

    async def make(self, source: Mapping[str, Any], artefact: str, identity: Identity) -> Made:
        """Stores the LoRA of a source under a name.

        Args:
            identity: of the weights that the effect was named after; others must not make it.
            source: {"prompt", "strength"}, or {"blend": [[effect, artefact, weight], ...], "strength"}.

        Raises:
            ApiError: it cannot be made; nothing is stored then.
        """
        ...

    async def identity(self) -> Identity:
        """What it predicts with.

        Raises:
            NotReady: its weights are not loaded.
        """
        ...


class GatewaySettings(Settings):
    """What a gateway tells its callers and asks of them.

    Attributes:
        model: name of what is served.
        render: of a clip where a request leaves something out.
        delete_wait_s: how long a DELETE waits for a renderer to stop.
        events_s: how long a stream of events lasts at most; less than Serve's request_timeout_s.
        poll_s: between two looks at a job under way.
        predict_timeout_s: of one prediction.
        max_body_bytes, body_timeout_s: of a request.
        gallery: whose effects and pictures the page shows; None, the right one for other bases, shows none.
    """

    model: str = "world"
    render: RenderConfig = RenderConfig()
    limits: RequestLimits = RequestLimits()
    pictures: PictureLimits = PictureLimits()
    delete_wait_s: float = Field(default=10, ge=0)
    events_s: float = Field(default=300, gt=0)
    poll_s: float = Field(default=0.5, gt=0)
    predict_timeout_s: float = Field(default=120, gt=0)
    max_body_bytes: int = Field(default=16 << 20, ge=1)
    body_timeout_s: float = Field(default=60, gt=0)
    gallery: Literal["world"] | None = "world"


@dataclass
class Services:
    """All that the routes use."""

    settings: GatewaySettings
    jobs: JobStore
    effects: EffectStore
    artefacts: ArtefactStore
    predictor: Predictor
    counters: Counters
    keys: Keys = field(default_factory=Keys)
    webhooks: WebhookSettings = WebhookSettings()  # noqa: RUF009  frozen
