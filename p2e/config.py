"""Every setting of p2e as pydantic models: unknown keys are refused, units stand in names or docstrings.

Nothing here imports torch, so a laptop can check a run's configuration in milliseconds. A run starts from sparse
YAML; what it resolved to is saved as JSON beside its results.
"""

import json
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from p2e.errors import ConfigError, InputError

__all__ = ["Settings"]


class Settings(BaseModel):
    """The root of every configuration: frozen, strict about keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @classmethod
    def parse(cls, values: Any, source: str = "configuration") -> Self:
        """Validates plain values.

        Raises:
            ConfigError: one line with the first offending key, its place and what is allowed.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the top level"
            raise ConfigError(f"{source}: {place}: {first['msg']}; see the fields of {cls.__name__}") from None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads YAML or JSON.

        Raises:
            ConfigError: the file is missing, not YAML, or does not fit.
        """
        from p2e.files import read_text

        try:
            values = yaml.safe_load(read_text(path))
        except (yaml.YAMLError, InputError) as error:
            message = " ".join(str(error).split())
            raise ConfigError(message if str(path) in message else f"{path}: not valid YAML ({message})") from None
        return cls.parse({} if values is None else values, str(path))

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"
