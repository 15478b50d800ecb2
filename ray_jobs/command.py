"""The command line of a job: settings from a YAML or JSON file, from flags, or from both."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import yaml

from p2e.config import Settings
from p2e.errors import ConfigError, P2EError

__all__ = ["run_job", "settings_of"]

T = TypeVar("T", bound=Settings)


def settings_of(model: type[T], description: str, arguments: Sequence[str] | None = None) -> T:
    """The settings that a command line asks for: those of --config, overruled by a flag for each field.

    Values of flags are YAML: `--rank 32`, `--adapt '{steps: 400}'`.

    Raises:
        ConfigError: a value or the file cannot be used.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON of the settings; flags overrule it")
    for name, field in model.model_fields.items():
        note = field.description or ("required" if field.is_required() else f"{field.default!r} if left out")
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, metavar="YAML", help=note.replace("%", "%%"))
    given = vars(parser.parse_args(arguments))
    file = given.pop("config")
    values: dict[str, Any] = {} if file is None else _read(model, file)
    for name, text in given.items():
        if text is not None:
            try:
                values[name] = yaml.safe_load(text)
            except yaml.YAMLError as error:
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(
                    f"{flag} {text}: not YAML ({' '.join(str(error).split())}); put it in quotes"
                ) from None
    return model.parse(values, file or "the command line")


def _read(model: type[Settings], file: str) -> dict[str, Any]:
    """Plain values of a file whose keys are all known; what is missing may still come from a flag."""
    from p2e.files import read_text

    try:
        values = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: settings are KEY: VALUE lines; see the fields of {model.__name__}")
    return values


def run_job(
    model: type[T], job: Callable[[T], int], description: str, arguments: Sequence[str] | None = None
) -> NoReturn:
    """Runs a job and ends the program: 0 done, 1 part of the work failed, 2 a mistake, which is one line on stderr."""
    try:
        code = job(settings_of(model, description, arguments))
    except P2EError as error:
        print(f"p2e: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    sys.exit(code)
