"""Whom events may be sent to: URLs on an allow list, and addresses that are nobody's inside.

A host is looked up once for each attempt, every address that it has is checked, and the connection goes to a checked
address: a name that means another address a moment later is not asked again. A URL has one reading: what two parsers
might understand differently (a backslash, a user's name, an address in hexadecimal) is refused.
"""

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from p2e.config import Settings
from serve.keys import checked_secret

__all__ = ["Forbidden", "Target", "WebhookSettings", "checked_addresses", "checked_target", "lookup"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
NAME = re.compile(rf"(?:{LABEL}\.)*{LABEL}")
PLAIN = r"[a-z0-9._~!$&'()*+,;=:@/-]|%[0-9a-f]{2}"
URL = re.compile(
    rf"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::(?P<port>[1-9][0-9]{{0,4}}))?"
    rf"(?P<path>/(?:{PLAIN})*)?(?P<query>\?(?:{PLAIN}|\?)*)?",
    re.IGNORECASE | re.ASCII,
)
# IPv6 addresses that stand for an IPv4 one behind a translator.
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Forbidden(ValueError):
    """An address that events are not sent to. The message says what to change, and repeats nothing."""


class WebhookSettings(Settings):
    """Who may be told about videos, and how patiently.

    Attributes:
        hosts: allowed ones: names, "*.example.com" for all names under one, or addresses. None are allowed by default.
        ports: allowed ones.
        allow_http: whether events may go unencrypted; for tests and networks that are encrypted themselves.
        allow_private: whether a host may have addresses that are not reached from everywhere.
        ca_file: certificates that receivers' are checked against, in PEM; None is those of certifi.
        secret: that webhooks are signed with where no keys are asked for (`python -m serve.keys` prints one).
        timeout_s: of one attempt, from the look-up of the name to the last byte that is read.
        attempts: how often an event is sent before it is given up.
        backoff_s, backoff_factor, backoff_max_s: from one attempt to the next: the first wait, by what it grows, and
            its most; each wait is up to a quarter shorter or longer.
        lease_s: for how long events under way are left alone by other deliverers.
        batch: how many events a deliverer sends at once.
        answer_bytes: of an answer's body that are read; only its status is looked at.
    """

    hosts: tuple[str, ...] = ()
    ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = (443,)
    allow_http: bool = False
    allow_private: bool = False
    ca_file: str | None = None
    secret: str | None = Field(default=None, repr=False)
    timeout_s: float = Field(default=10, gt=0)
    attempts: int = Field(default=9, ge=1)
    backoff_s: float = Field(default=5, gt=0)
    backoff_factor: float = Field(default=4, ge=1)
    backoff_max_s: float = Field(default=4 * 3600, gt=0)
    lease_s: float = Field(default=60, gt=0)
    batch: int = Field(default=16, ge=1)
    answer_bytes: int = Field(default=4096, ge=0)

    _secret = field_validator("secret")(checked_secret)

    @field_validator("hosts")
    @classmethod
    def _known_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        found = []
        for text in hosts:
            bare = text.lower().removeprefix("*.")
            host = _host(bare)
            if host is None or (bare != text.lower() and _address(host) is not None):
                raise ValueError(f"{text[:80]!r} is no host; give a name, *.NAME, or an address in its plain form")
            found.append(text.lower()[: len(text) - len(bare)] + host)
        return tuple(found)

    @model_validator(mode="after")
    def _one_at_a_time(self) -> Self:
        if self.lease_s <= self.timeout_s:
            raise ValueError("lease_s must be more than timeout_s, or an event is sent twice while it is under way")
        return self

    def allows(self, host: str) -> bool:
        """Whether a host (in lower case) is one of `hosts`."""
        return host in self.hosts or any(rule[:2] == "*." and host.endswith(rule[1:]) for rule in self.hosts)


@dataclass(frozen=True)
class Target:
    """A URL that events may go to, in its parts; `host` has no brackets."""

    scheme: str
    host: str
    port: int
    path: str

    def at(self, address: Address) -> str:
        """The same URL with an address for its host."""
        place = f"[{address}]" if address.version == 6 else str(address)
        return f"{self.scheme}://{place}:{self.port}{self.path}"

    @property
    def authority(self) -> str:
        """As the Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == {"http": 80, "https": 443}[self.scheme] else f"{host}:{self.port}"


def checked_target(url: str, settings: WebhookSettings) -> Target:
    """The parts of a URL that events may be sent to.

    Raises:
        Forbidden: it is not one that has one reading alone, or not allowed.
    """
    match = URL.fullmatch(url) if len(url) <= 2048 else None
    host = None if match is None else _host(match["host"].lower())
    if match is None or host is None:
        raise Forbidden("not a plain URL; give https://HOST/PATH, without user, fragment or backslash")
    scheme = match["scheme"].lower()
    port = int(match["port"] or {"http": 80, "https": 443}[scheme])
    if scheme == "http" and not settings.allow_http:
        raise Forbidden("give an https URL")
    if not settings.allows(host):
        raise Forbidden("this host is not on the list of allowed hosts; ask the operator to add it")
    if port not in settings.ports:
        raise Forbidden(f"this port is not allowed; use one of {', '.join(map(str, settings.ports))}")
    return Target(scheme, host, port, (match["path"] or "/") + (match["query"] or ""))


def _host(text: str) -> str | None:
    """A host as it is compared: a name, or an address in its one plain form; None for all else."""
    bare = text[1:-1] if text.startswith("[") else text
    if (address := _address(bare)) is None:
        # What ends in a number is an address to some parsers: 127.1, 0x7f.1, 2130706433.
        number = re.fullmatch(r"[0-9]+|0x[0-9a-f]*", bare.rpartition(".")[2])
        return bare if bare == text and len(bare) <= 253 and NAME.fullmatch(bare) and not number else None
    return bare if str(address) == bare and (address.version == 6) == (bare != text or ":" in text) else None


def _address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def lookup(host: str, port: int) -> list[str]:
    """All addresses of a host.

    Raises:
        OSError: it has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def checked_addresses(found: Sequence[str], allow_private: bool = False) -> list[Address]:
    """The addresses of a host, each of which may be connected to.

    Raises:
        Forbidden: there is none, or one of them is not for everybody: then the name is not to be trusted.
    """
    addresses = [_address(text) for text in found]
    checked = [address for address in addresses if address is not None and _may_be_reached(address, allow_private)]
    if not checked or len(checked) < len(addresses):
        raise Forbidden("the host has an address that is not reached from everywhere")
    return checked


def _may_be_reached(address: Address, allow_private: bool) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner:
            return _may_be_reached(inner, allow_private)
        if address.is_site_local:
            return allow_private
    # Nobody's receiver, on no network: groups, nobody, and where clouds tell machines their own credentials.
    if address.is_multicast or address.is_unspecified or address.is_link_local:
        return False
    return allow_private or (address.is_global and not address.is_reserved)
