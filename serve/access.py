"""Who asks, and whether again: the API key and the idempotency key of a request, for the routes."""

from typing import Annotated

from fastapi import Depends, Header, Security
from fastapi.security import HTTPBearer
from starlette.requests import Request

from serve.keys import ApiKey

__all__ = ["IdempotencyKey", "Key", "owner"]

IdempotencyKey = Annotated[
    str | None,
    Header(
        max_length=256,
        pattern=r"^[\x21-\x7e]+$",
        description="a word of the caller's, new for each request: a request that is sent again with it is done once",
    ),
]

# For the document alone: `owner` reads the header itself.
BEARER = HTTPBearer(
    scheme_name="key",
    description="An API key. A service that runs without a file of keys takes everything, and asks for none.",
    auto_error=False,
)


def owner(request: Request) -> ApiKey:
    """The key that a request shows, of those in `app.state.keys`.

    Raises:
        Unauthorised: it shows none that is known.
    """
    return request.app.state.keys.owner(request.headers.get("authorization"))


def _shown(key: Annotated[ApiKey, Depends(owner)], _bearer: Annotated[object, Security(BEARER)]) -> ApiKey:
    return key


Key = Annotated[ApiKey, Depends(_shown)]
