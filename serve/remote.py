"""The gateway's side of the predictor's deployment: calls it by its handle, and says what went wrong as an answer."""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve.errors import ApiError, Busy, Changed, TooLate
from serve.services import Identity, Made, NotReady

__all__ = ["RemotePredictor"]

LOG = logging.getLogger("p2e.gateway")
KNOWN_S = 10  # how long what the predictor has loaded is taken for granted


class RemotePredictor:
    """A `Predictor` behind a handle.

    Args:
        handle: of the deployment.
        timeout_s: of a prediction.
        ready_s: of asking what is loaded.
    """

    def __init__(self, handle: Any, timeout_s: float, ready_s: float = 3.0) -> None:
        self._handle, self._timeout_s, self._ready_s = handle, timeout_s, ready_s
        self._identity: Identity | None = None
        self._asked_at = 0.0

    async def identity(self) -> Identity:
        if self._identity is not None and time.monotonic() - self._asked_at < KNOWN_S:
            return self._identity
        self._identity = None
        try:
            found = await asyncio.wait_for(_awaited(self._handle.identity.remote()), self._ready_s)
        except (TimeoutError, RayActorError, DeploymentUnavailableError, BackPressureError):
            raise NotReady("weights are being loaded; try again in a moment", retry_after_s=5) from None
        self._identity, self._asked_at = found, time.monotonic()
        return found

    async def make(self, source: Mapping[str, Any], artefact: str, identity: Identity) -> Made:
        for attempt in (1, 2):
            try:
                made = await asyncio.wait_for(
                    _awaited(self._handle.make.remote(dict(source), artefact, identity)), self._timeout_s
                )
            except TimeoutError:
                raise TooLate("the prediction took too long; try again later", retry_after_s=30) from None
            except BackPressureError:
                raise Busy("too many prompts wait; try again in a moment", retry_after_s=5) from None
            except DeploymentUnavailableError:
                raise NotReady("the predictor is not there; try again in a moment", retry_after_s=30) from None
            except (
                RayActorError
            ) as error:  # it died with the prompt: another one may do it, as it leaves nothing behind
                LOG.warning("a predictor was lost: %s", type(error).__name__)
                if attempt == 2:
                    raise NotReady("the predictor was lost; try again in a moment", retry_after_s=10) from None
                continue
            if isinstance(made, Changed):
                self._identity = None
            if isinstance(made, ApiError):
                raise made
            return made
        raise AssertionError("unreachable")


async def _awaited(response: Any) -> Any:
    return await response
