"""API keys: what is kept of a key is its SHA-256 and what it allows.

    python -m serve.keys NAME        # prints a new key, once, and the entry for the file of keys

A key is 256 random bits, so that a plain hash of it cannot be turned back; comparisons take the same time for every
key. The secret that an owner's webhooks are signed with is kept as it is, since both sides must know it: the file of
keys is to be read by the service alone.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import Field, field_validator

from p2e.config import Settings
from serve.errors import ApiError

__all__ = [
    "ApiKey",
    "Keys",
    "Unauthorised",
    "checked_secret",
    "main",
    "new_key",
    "new_secret",
    "open_keys",
    "secret_bytes",
]

PREFIX = "p2e-"
SECRET = "whsec_"
NOBODY = "local"  # owner of everything where no keys are asked for


class Unauthorised(ApiError):
    """No key, or one that is not known."""

    status, code = 401, "invalid_api_key"


def secret_bytes(secret: str) -> bytes:
    """What a webhook secret (`whsec_` and base64) is in bytes.

    Raises:
        ValueError: it is not one. What was given is not repeated.
    """
    try:
        found = base64.b64decode(secret.removeprefix(SECRET), validate=True)
    except (binascii.Error, ValueError):
        found = b""
    if not secret.startswith(SECRET) or not 24 <= len(found) <= 64:
        raise ValueError(f"not a webhook secret; give {SECRET} and 24 to 64 bytes in base64, as serve.keys makes them")
    return found


def checked_secret(secret: str | None) -> str | None:
    """A webhook secret or none, for settings; raises as `secret_bytes` does."""
    if secret is not None:
        secret_bytes(secret)
    return secret


def new_secret() -> str:
    """A new secret for webhooks."""
    return SECRET + base64.b64encode(secrets.token_bytes(32)).decode()


class ApiKey(Settings):
    """An entry of the file of keys.

    Attributes:
        name: of the owner; who shows the key owns what it made.
        sha256: of the key.
        jobs: videos that may wait or run at once.
        effects_per_minute: predictions.
        webhook_secret: that the owner's webhooks are signed with; without one it can have none.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    jobs: int = Field(default=8, ge=1)
    effects_per_minute: int = Field(default=60, ge=1)
    webhook_secret: str | None = Field(default=None, repr=False)

    _secret = field_validator("webhook_secret")(checked_secret)

    @field_validator("name")
    @classmethod
    def _not_nobody(cls, name: str) -> str:
        if name == NOBODY:
            raise ValueError(f"{NOBODY} is the owner where no keys are asked for; choose another name")
        return name


class KeyFile(Settings):
    """The file of keys. One without any would let everybody in, so that it is refused."""

    keys: list[ApiKey] = Field(min_length=1)

    @field_validator("keys")
    @classmethod
    def _different(cls, keys: list[ApiKey]) -> list[ApiKey]:
        for what in ("name", "sha256"):
            found = [getattr(key, what) for key in keys]
            if twice := {value for value in found if found.count(value) > 1}:
                raise ValueError(f"{what} {min(twice)} is there twice")
        return keys


class Keys:
    """The known keys; with none, whoever asks is let in and owns everything.

    Args:
        keys: of all owners.
    """

    def __init__(self, keys: Sequence[ApiKey] = ()) -> None:
        self._keys = tuple(keys)
        self._open = ApiKey.model_construct(name=NOBODY, sha256="", jobs=1 << 30, effects_per_minute=1 << 30)

    def webhook_secret(self, owner: str, open_secret: str | None = None) -> str | None:
        """What webhooks of an owner are signed with; `open_secret` where no keys are asked for, None where nothing."""
        if not self._keys:
            return open_secret
        return next((key.webhook_secret for key in self._keys if key.name == owner), None)

    @classmethod
    def load(cls, path: str | Path) -> "Keys":
        """Reads a file of keys.

        Raises:
            ConfigError: it is missing, not one, or holds no key.
        """
        return cls(KeyFile.load(path).keys)

    def owner(self, authorization: str | None) -> ApiKey:
        """Who an Authorization header (`Bearer KEY`) is of.

        Raises:
            Unauthorised: the header or the key is not known.
        """
        if not self._keys:
            return self._open
        match = re.fullmatch(r"(?i:bearer) +([\x21-\x7e]{1,256})", authorization or "")
        shown = hashlib.sha256((match[1] if match else "").encode()).hexdigest()
        found = None
        for key in self._keys:  # all of them, whichever it is
            if hmac.compare_digest(shown, key.sha256):
                found = key
        if match is None:
            raise Unauthorised("give an API key: Authorization: Bearer KEY")
        if found is None:
            raise Unauthorised("this API key is not known")
        return found


def open_keys(path: str | None) -> Keys:
    """The keys of a file; where none is named, whoever asks is let in.

    Raises:
        ConfigError: the file is missing, not one, or holds no key.
    """
    return Keys() if path is None else Keys.load(path)


def new_key(name: str) -> tuple[str, ApiKey]:
    """A new key, and its entry."""
    token = PREFIX + secrets.token_urlsafe(32)
    digest = hashlib.sha256(token.encode()).hexdigest()
    return token, ApiKey.parse({"name": name, "sha256": digest, "webhook_secret": new_secret()}, "key")


def main(given: Sequence[str] | None = None) -> int:
    from p2e.errors import P2EError

    arguments = list(sys.argv[1:] if given is None else given)
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m serve.keys NAME", file=sys.stderr)
        return 2
    try:
        token, entry = new_key(arguments[0])
    except P2EError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"key (shown once): {token}\nsecret of its webhooks: {entry.webhook_secret}")
    print("entry for the file of keys:\n")
    print(yaml.safe_dump({"keys": [entry.model_dump()]}, sort_keys=False), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
