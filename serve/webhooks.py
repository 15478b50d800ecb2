"""Sends events: signed as Standard Webhooks has it, to checked addresses, again and later where they do not arrive.

    webhook-id: evt_...             the same whenever the event is sent: receivers drop what they have had
    webhook-timestamp: 1760000000   of this attempt
    webhook-signature: v1,BASE64    HMAC-SHA-256 of "ID.TIMESTAMP.BODY" under the secret of the owner's API key

Any number of deliverers may run; events come in no order.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import logging
import random
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus

import httpx

from p2e import __version__
from p2e.errors import ConfigError
from serve.keys import Keys, secret_bytes
from serve.outbox import Event, Outbox
from serve.webhook_urls import Address, Forbidden, Target, WebhookSettings, checked_addresses, checked_target, lookup

__all__ = ["Delivered", "Deliverer", "signature"]

LOG = logging.getLogger("p2e.webhooks")
MAX_ADDRESSES = 4  # of one host that are tried
BODY_S = 1  # of waiting for an answer's body once its status is there


@dataclass(frozen=True)
class Delivered:
    """What became of the events of one round: how many arrived, are sent again later, and were given up."""

    delivered: int = 0
    retried: int = 0
    given_up: int = 0


class _Failed(Exception):
    """An attempt in vain; the message holds nothing of the URL."""


def signature(secret: str, event_id: str, timestamp: int, body: str) -> str:
    """The header that shows who an event is from."""
    text = f"{event_id}.{timestamp}.{body}".encode()
    return "v1," + base64.b64encode(hmac.digest(secret_bytes(secret), text, hashlib.sha256)).decode()


class Deliverer:
    """Sends what is due.

    Args:
        outbox: that the events are in.
        keys: whose secrets they are signed with.
        settings: of webhooks.
        resolve: gives all addresses of a host and a port; raises OSError where there are none.

    Raises:
        ConfigError: the certificates cannot be read.
    """

    def __init__(
        self,
        outbox: Outbox,
        keys: Keys,
        settings: WebhookSettings,
        resolve: Callable[[str, int], Sequence[str]] = lookup,
    ) -> None:
        self.outbox, self.keys, self.settings, self._resolve = outbox, keys, settings, resolve
        # Threads of its own: a look-up cannot be stopped, and a slow one is left behind when its time is over.
        self._lookups = ThreadPoolExecutor(settings.batch, "webhook-lookup")
        try:
            if settings.ca_file is None:
                self._tls = httpx.create_ssl_context(trust_env=False)
            else:
                self._tls = ssl.create_default_context(cafile=settings.ca_file)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{settings.ca_file}: not certificates ({error}); give a file in PEM") from None

    def run_once(self) -> Delivered:
        """Sends the events that are due, `batch` of them at once, and says what became of them. To be called from a
        thread, again at once while something arrives and every second or so otherwise."""
        events = self.outbox.claim(self.settings.batch, self.settings.lease_s)
        if not events:
            return Delivered()

        async def all_at_once() -> list[str | BaseException]:
            return await asyncio.gather(*(self._deliver(event) for event in events), return_exceptions=True)

        found = asyncio.run(all_at_once())
        for error in found:  # of the database; the event is sent again when its lease is over
            if isinstance(error, BaseException):
                raise error
        return Delivered(**Counter(str(word) for word in found))

    def close(self) -> None:
        """Ends the threads."""
        self._lookups.shutdown(wait=False, cancel_futures=True)

    async def _deliver(self, event: Event) -> str:
        """Sends one event -> the field of `Delivered` that it counts for."""
        status, why = await self._tried(event)
        if status is not None and HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            await asyncio.to_thread(self.outbox.delivered, event)
            return "delivered"
        if event.attempts + 1 >= self.settings.attempts or status == HTTPStatus.GONE:
            LOG.warning("event %s of video %s is given up: %s", event.id, event.job_id, why)
            await asyncio.to_thread(self.outbox.failed, event, why, None)
            return "given_up"
        retry_at = self.outbox.clock() + self._wait_s(event.attempts)
        await asyncio.to_thread(self.outbox.failed, event, why, retry_at)
        return "retried"

    async def _tried(self, event: Event) -> tuple[int | None, str]:
        """-> the status that was answered, None where no answer came, and what is to be said of it."""
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                status = await self._send(event)
            return status, f"answered {status}"
        except TimeoutError:
            return None, f"no answer within {self.settings.timeout_s:g} s"
        except (Forbidden, _Failed) as error:
            return None, str(error)
        except Exception as error:  # whatever it is, the others' events go on; what it says may hold the URL
            LOG.error("event %s of video %s could not be sent: %s", event.id, event.job_id, type(error).__name__)
            return None, f"could not be sent ({type(error).__name__})"

    def _wait_s(self, attempts: int) -> float:
        settings = self.settings
        wait = min(settings.backoff_max_s, settings.backoff_s * settings.backoff_factor ** min(attempts, 64))
        return wait * random.uniform(0.75, 1.25)

    async def _send(self, event: Event) -> int:
        """-> the status that was answered.

        Raises:
            Forbidden: the URL or an address of its host is not allowed; nothing was connected to.
            _Failed: no answer came.
        """
        target = checked_target(event.url, self.settings)  # as it is allowed today
        secret = self.keys.webhook_secret(event.owner, self.settings.secret)
        if secret is None:
            raise _Failed("the owner's key has no webhook_secret any more")
        try:
            found = await asyncio.wrap_future(self._lookups.submit(self._resolve, target.host, target.port))
        except (OSError, UnicodeError):
            raise _Failed("the host has no address") from None
        addresses = checked_addresses(found, self.settings.allow_private)[:MAX_ADDRESSES]
        timestamp = int(self.outbox.clock())
        headers = {
            "host": target.authority, "content-type": "application/json", "user-agent": f"p2e/{__version__}",
            "accept-encoding": "identity", "webhook-id": event.id, "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(secret, event.id, timestamp, event.body),
        }  # fmt: skip
        for address in addresses:
            try:
                return await self._post(target, address, len(addresses), headers, event.body.encode())
            except (httpx.ConnectError, httpx.ConnectTimeout):  # nothing was sent: another address may do
                continue
            except httpx.HTTPError as error:
                raise _Failed(f"broke off ({type(error).__name__})") from None
        raise _Failed("cannot be connected to, or its certificate is not valid")

    async def _post(self, target: Target, address: Address, shares: int, headers: dict[str, str], body: bytes) -> int:
        limits = httpx.Timeout(self.settings.timeout_s, connect=self.settings.timeout_s / shares)
        # A client for each: one that kept connections would know them by address, and two hosts may have the same.
        async with (
            httpx.AsyncClient(verify=self._tls, trust_env=False, follow_redirects=False, timeout=limits) as client,
            client.stream(
                "POST", target.at(address), content=body, headers=headers, extensions={"sni_hostname": target.host}
            ) as answer,
        ):
            left = self.settings.answer_bytes
            with contextlib.suppress(httpx.HTTPError, TimeoutError):  # the status was said
                async with asyncio.timeout(BODY_S):
                    async for piece in answer.aiter_raw():
                        left -= len(piece)
                        if left <= 0:
                            break
            return answer.status_code
