"""One family of errors, each a single line that names the thing at fault and the remedy.

They cross process boundaries (Ray workers), so each keeps its message as its only argument and stays picklable.
The command line prints the message and exits with 2; nothing else is caught there.
"""

__all__ = ["ConfigError", "FormatError", "InputError", "OutputError", "P2EError"]


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
