"""The bases that have a name."""

import difflib

from p2e.bases.base import Base, Family
from p2e.bases.cogvideox import COGVIDEOX
from p2e.bases.hunyuan import HUNYUAN
from p2e.bases.ltx import LTX
from p2e.bases.wan import WAN
from p2e.errors import InputError

__all__ = ["FAMILIES", "base_names", "get_base"]

FAMILIES: tuple[Family, ...] = (WAN, LTX, HUNYUAN, COGVIDEOX)


def base_names() -> list[str]:
    """The names that get_base knows, the embedded world last."""
    names = [name for family in FAMILIES for name in family.bases]
    return sorted(names, key=lambda name: name == "world")


def get_base(name: str) -> Base:
    """A base's site table by name; no weights are needed for it.

    Raises:
        InputError: no base has that name; the message has the closest ones.
    """
    for family in FAMILIES:
        if name in family.bases:
            return family.bases[name]
    names = base_names()
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise InputError(
        f"no base is named {name[:80]!r}: {hint}The names are {', '.join(names)}; or give a folder of weights"
    )
