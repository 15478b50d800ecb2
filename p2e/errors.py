"""One family of errors, each a single line that names the thing at fault and the remedy.

They cross process boundaries (Ray workers), so each stays picklable: what it is made with are its arguments.
The command line prints the message and exits with 2; nothing else is caught there.
"""

__all__ = ["ConfigError", "EndpointError", "FormatError", "InputError", "OutputError", "P2EError"]


class P2EError(Exception):
    """Anything a user can mend. The message is one line: what is wrong, where, and what to do."""


class InputError(P2EError, ValueError):
    """An argument or a value given by the user cannot be used."""


class FormatError(InputError):
    """A file is not what it should be: corrupt, of an unknown format, or for another base."""


class ConfigError(InputError):
    """A configuration has an unknown key, a wrong value, or settings that contradict each other."""


class OutputError(P2EError, OSError):
    """A result cannot be written. Nothing half-written is left behind."""


class EndpointError(P2EError):
    """The endpoint refuses, fails, or does not answer.

    Attributes:
        status: of HTTP; None where no answer came.
        code: a word that programs may rely on, such as not_found, quota_exceeded or unreachable.
        param: the field of the request at fault.
        retry_after_s: after how many seconds the endpoint wants to be asked again.
    """

    def __init__(
        self, message: str, status: int | None = None, code: str | None = None, param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message, status, code, param, retry_after_s)  # what it is unpickled with
        self.message, self.status, self.code, self.param = message, status, code, param
        self.retry_after_s = retry_after_s

    @property
    def passing(self) -> bool:
        """Whether it may be over in a while: no answer came, or one that says so."""
        return self.status is None or self.status in (429, 502, 503, 504)

    def __str__(self) -> str:
        return self.message
