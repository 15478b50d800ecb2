"""Which base some weights belong to: from config.json, else from the names and shapes of the tensors."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from p2e.bases.base import EXPERTS, Base, Family
from p2e.bases.checkpoint import Checkpoint
from p2e.bases.registry import FAMILIES, base_names, get_base
from p2e.errors import FormatError

__all__ = ["NAME_KEY", "detect_base"]

NAME_KEY = "p2e_base"
"""Key of config.json, or of a safetensors header, that names the base where class and sizes do not."""


def detect_base(transformers: Mapping[str | None, Checkpoint]) -> Base:
    """The base that these transformers are: a registered one if class and sizes agree, else a table of their own.

    Raises:
        FormatError: they are of no known family, are one of two experts, or contradict their own config.json.
    """
    try:
        return _detect(transformers)
    except (TypeError, AttributeError) as error:  # a value of config.json that is not a size
        where = " and ".join(checkpoint.location for checkpoint in transformers.values())
        raise FormatError(f"{where}: config.json has values that do not fit its class ({error})") from None


def _detect(transformers: Mapping[str | None, Checkpoint]) -> Base:
    found = {expert: _family_and_configs(checkpoint) for expert, checkpoint in transformers.items()}
    (first, (family, configs)), *others = found.items()
    where = transformers[first].location
    for _, (other_family, other_configs) in others:
        if other_family is not family or family.identity(other_configs[0]) != family.identity(configs[0]):
            raise FormatError(f"{where}: its two transformers differ in size; give the folder of one model")
    experts = tuple(transformers)
    for config in configs:
        for base in family.bases.values():
            if family.identity(base.diffusers_config) != family.identity(config):
                continue
            if base.experts == experts:
                return _named(base, transformers[first])
            if experts == (None,) and base.experts == tuple(EXPERTS):
                raise FormatError(
                    f"{where}: this is one of the two experts of {base.name}; give the folder that holds both"
                )
    subfolders: Mapping[str | None, str] = EXPERTS if len(experts) > 1 else {None: "transformer"}
    return _named(family.build("custom", configs[0], subfolders), transformers[first])


def _family_and_configs(checkpoint: Checkpoint) -> tuple[Family, list[dict[str, Any]]]:
    """The family, and the diffusers configs that the checkpoint may have, likeliest first."""
    stated = checkpoint.config.get("_class_name")
    for family in FAMILIES:
        if stated == family.diffusers_class:
            hidden = ("_", NAME_KEY)
            return family, [{k: v for k, v in checkpoint.config.items() if not k.startswith(hidden)}]
    known = ", ".join(family.diffusers_class for family in FAMILIES)
    if isinstance(stated, str) and "Transformer" in stated:
        raise FormatError(f"{checkpoint.location}: {stated} is not a base that p2e knows; it knows {known}")
    for family in FAMILIES:
        if configs := family.configs(checkpoint.shapes):
            return family, configs
    raise FormatError(f"{checkpoint.location}: the tensors are not those of a base that p2e knows ({known})")


def _named(base: Base, checkpoint: Checkpoint) -> Base:
    """The base under the name that its weights state, if they do."""
    name = checkpoint.config.get(NAME_KEY) or checkpoint.metadata.get(NAME_KEY)
    if not name or name == base.name:
        return base
    if name in base_names() and [(s.key, s.d_out, s.d_in) for s in get_base(name).sites] != [
        (s.key, s.d_out, s.d_in) for s in base.sites
    ]:
        raise FormatError(f"{checkpoint.location}: says it is {name}, but its sizes are not; correct {NAME_KEY}")
    return replace(base, name=str(name))
