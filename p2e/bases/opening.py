"""From what a user types after --base to a site table and, if there are weights, a reader."""

from pathlib import Path

from p2e.bases.base import Base
from p2e.bases.checkpoint import find_transformers
from p2e.bases.detect import detect_base
from p2e.bases.registry import base_names, get_base
from p2e.bases.weights import WeightReader
from p2e.errors import InputError

__all__ = ["open_base", "world_base_folder"]


def world_base_folder() -> Path:
    """Where the embedded world's base is shipped."""
    import p2e.world

    assert p2e.world.__file__ is not None  # a package with an __init__.py
    return Path(p2e.world.__file__).parent / "base"


def open_base(name_or_folder: str | Path) -> tuple[Base, WeightReader | None]:
    """A base by name or by its weights.

    A registered name gives the table alone, but "world" its shipped weights too, where this installation has them. A
    path or an fsspec URL gives both; the base is detected. A folder that happens to be called like a base is meant by
    writing ./NAME.

    Raises:
        InputError: it is neither a name nor a place.
        FormatError: the weights cannot be read, or are of no known base.
    """
    text = str(name_or_folder)
    if text == "world":
        folder = world_base_folder()
        base = get_base(text)
        return base, WeightReader(base, folder) if (folder / "transformer").is_dir() else None
    if text in base_names() or not text.strip():
        return get_base(text), None
    try:
        transformers = find_transformers(text)
    except InputError:
        if "/" not in text and "\\" not in text and not Path(text).exists():
            get_base(text)  # raises with the closest names
        raise
    base = detect_base(transformers)
    for checkpoint in transformers.values():
        checkpoint.close()
    return base, WeightReader(base, text)
