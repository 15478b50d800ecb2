"""Which base a LoRA file was made for, told from its layers' names and shapes.

The rule: a base fits if no layer of the file that it knows has another shape there, and none would be a site only if
the base had more blocks. Of the fitting bases those stay that know the most layers. Of several, the header's `p2e.base`
decides; without one nothing in a file does (Wan2.1-T2V-14B and Wan2.2-A14B have the same layers), so the user must.
"""

from pathlib import Path

from p2e import bases
from p2e.bases.base import Base
from p2e.errors import FormatError, InputError
from p2e.lora.keys import NameTable, shown
from p2e.lora.layers import BASE_KEY, LoraFile

__all__ = ["detect_base", "detect_lora_base", "fitting_bases"]


def detect_lora_base(path: str | Path, expert: str | None = None) -> Base:
    """The base that a LoRA file was made for.

    Args:
        path: a LoRA file of any family.
        expert: given if the file is known to be for one transformer of a two-expert base.

    Raises:
        FormatError: the file is no LoRA, or fits no base that p2e knows.
        InputError: it fits several; the message lists them.
    """
    with LoraFile(path) as file:
        return detect_base(file, expert)


def detect_base(file: LoraFile, expert: str | None = None) -> Base:
    """`detect_lora_base` of a file that is open."""
    several = expert is not None or any(layer.expert is not None for layer in file.layers)
    found = [base for base in fitting_bases(file) if len(base.experts) > 1 or not several]
    if not found:
        first = next(layer.name for layer in file.layers if layer.is_pair)
        raise FormatError(
            f"{file.source}: its layers (first: {shown(first)}) fit no base that p2e knows"
            f"{' with two experts' if several else ''}; name the base or its folder with --base"
        )
    if len(found) > 1:
        named = [base for base in found if base.name == file.metadata.get(BASE_KEY)]
        if not named:
            names = ", ".join(base.name for base in found)
            raise InputError(f"{file.source}: fits several bases alike; say which with --base: {names}")
        found = named
    return found[0]


def fitting_bases(file: LoraFile) -> list[Base]:
    """The known bases that fit the file's layers best, in the order of the table of bases; empty for none."""
    hits: dict[str, int] = {}
    table = {name: bases.get_base(name) for name in bases.base_names()}
    for name, base in table.items():
        hits[name] = _known_layers(file, NameTable(base))
    best = max(hits.values())
    return [table[name] for name in table if best and hits[name] == best]


def _known_layers(file: LoraFile, names: NameTable) -> int:
    """How many of the file's layers the base has with the same shape; 0 if any speaks against it."""
    known = 0
    for layer in file.layers:
        if layer.shape is None:
            continue
        place = names.any_place(layer.name)
        if place is None:
            if names.beyond(layer.name):
                return 0
            continue
        if layer.shape != (place.rows, place.site.d_in):
            return 0
        known += 1
    return known
