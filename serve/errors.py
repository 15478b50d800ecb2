"""What a request can be answered with besides what it asked for: one family, in the envelope of the OpenAI API.

Nothing of the server is in a message: no path, no address, no traceback.
"""

from typing import Any

__all__ = [
    "ApiError",
    "Busy",
    "Changed",
    "Conflict",
    "Internal",
    "KeyReused",
    "NotFound",
    "QueueFull",
    "QuotaExceeded",
    "StorageFull",
    "TooLate",
    "checked_id",
]


class ApiError(Exception):
    """A request that cannot be served.

    Attributes:
        status: of HTTP.
        code: a word that programs may rely on.
        param: the field of the request at fault.
        retry_after_s: after how many seconds the same request may be tried again.
    """

    status = 400
    code = "bad_request"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.retry_after_s = message, param, retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.message, self.param, self.retry_after_s)

    @property
    def envelope(self) -> dict[str, dict[str, str | None]]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def _rebuilt(kind: type[ApiError], message: str, param: str | None, retry_after_s: int | None) -> ApiError:
    return kind(message, param=param, retry_after_s=retry_after_s)


class NotFound(ApiError):
    """There is no such thing, or it is another's."""

    status, code = 404, "not_found"


def checked_id(text: str, kind: str) -> str:
    """An id that a caller gives, to look for in a database.

    Raises:
        NotFound: it cannot be one: PostgreSQL takes no text with NUL in it.
    """
    if "\x00" in text:
        raise NotFound(f"no {kind} of this id")
    return text


class Conflict(ApiError):
    """The thing is in a state that does not allow it."""

    status, code = 409, "conflict"


class KeyReused(ApiError):
    """An idempotency key that came with another request before."""

    status, code = 422, "idempotency_key_reused"


class QuotaExceeded(ApiError):
    """The caller has as many jobs as its key allows."""

    status, code = 429, "quota_exceeded"


class QueueFull(ApiError):
    """The service has as many jobs waiting as it takes."""

    status, code = 429, "queue_full"


class Internal(ApiError):
    """What should not have happened; the log has it, the answer does not."""

    status, code = 500, "internal_error"


class Busy(ApiError):
    """More prompts wait than the predictor takes."""

    status, code = 503, "predictor_busy"


class Changed(ApiError):
    """The predictor has other weights than a moment ago: a new version is being rolled out."""

    status, code = 503, "predictor_changed"


class TooLate(ApiError):
    """The predictor did not answer in time."""

    status, code = 504, "predictor_timeout"


class StorageFull(ApiError):
    """What was made or sent cannot be stored."""

    status, code = 507, "storage_failed"
