"""Options and arguments that several commands share."""

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from p2e.errors import InputError, OutputError

if TYPE_CHECKING:
    from p2e.bases import Base

__all__ = [
    "AsJson", "BaseFolder", "BaseOption", "Device", "Dtype", "DtypeOption", "Expert", "Format", "FormatOption",
    "Output", "base_or_none", "check_folder", "check_output", "on_terminal", "parse_weighted", "pick_device",
    "progress_bar", "quiet_libraries", "shipped",
]  # fmt: skip

Format = Literal["wan", "diffusers", "kohya"]
Dtype = Literal["bfloat16", "float16", "float32"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
BaseOption = Annotated[
    str | None,
    typer.Option("--base", metavar="NAME|DIR", help="Base model; told from the file's layers where they allow it."),
]
Expert = Annotated[
    str | None,
    typer.Option("--expert", metavar="NAME", help="Of a base with two: high_noise, low_noise, or both."),
]
FormatOption = Annotated[Format, typer.Option("--format", help="Names of the layers in the file.")]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Type of the factors in the file.")]
BaseFolder = Annotated[
    str, typer.Option("--base", metavar="DIR|world", help="Folder of the base model's weights, or the shipped world.")
]
Output = Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Where to write the result.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu or cuda; cuda where there is one, if left out.")]


def base_or_none(name: str | None) -> "Base | None":
    """The base asked for, if any was.

    Raises:
        InputError: there is no such base.
    """
    from p2e.bases import open_base

    return None if name is None else open_base(name)[0]


def parse_weighted(text: str) -> tuple[str, float]:
    """Splits "file:0.5" into the file and its weight; the weight is 1 where none is given.

    Raises:
        InputError: the file is missing, or the weight is not finite.
    """
    path, colon, number = text.rpartition(":")
    if not colon:
        return text, 1.0
    try:
        weight = float(number)
    except ValueError:
        return text, 1.0  # the colon belongs to a URL
    if not path or not math.isfinite(weight):
        raise InputError(f"{text}: expected FILE or FILE:WEIGHT with a finite weight")
    return path, weight


def pick_device(name: str | None) -> str:
    """The device asked for, or the best there is.

    Raises:
        InputError: it does not exist on this machine.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise InputError(f"--device {name}: no such device; use cpu or cuda") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: there is no GPU on this machine; use cpu")
    return name


def shipped(name: str, part: str) -> str:
    """The path of a part of the shipped world where `name` is "world"; anything else is a path already."""
    import p2e.world

    return str(Path(p2e.world.__path__[0]) / part) if name == "world" else name


def check_output(path: str, endings: tuple[str, ...] = ()) -> None:
    """Finds out before the work begins that a result could not be written after it.

    Raises:
        InputError: the path has none of the `endings`.
        OutputError: it is a folder, or its folder cannot be made or written to.
    """
    target = Path(path)
    if endings and target.suffix.lower() not in endings:
        raise InputError(f"{path}: cannot be written in that format; let the name end in {' or '.join(endings)}")
    if target.is_dir():
        raise OutputError(f"{path}: is a folder; give the name of a file")
    check_folder(target.parent, path)


def check_folder(folder: str | Path, path: str | None = None) -> None:
    """The same for results in a folder that may have to be made; `path` is the name for the message.

    Raises:
        OutputError: the folder cannot be made or written to.
    """
    place = Path(folder).absolute()
    nearest = next(parent for parent in (place, *place.parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise OutputError(
            f"{path or folder}: cannot be written, {nearest} is no folder one can write to; choose another place"
        )


def quiet_libraries(*, diffusers: bool = True) -> None:
    """Keeps the notices and bars of transformers and diffusers off the screen; their errors still reach it.

    Args:
        diffusers: the command uses diffusers; where it does not, seconds of importing it are saved.
    """
    from transformers.utils import logging as of_transformers

    logs: list[Any] = [of_transformers]
    if diffusers:
        from diffusers.utils import logging as of_diffusers

        logs.append(of_diffusers)
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()


def on_terminal() -> bool:
    """Whether someone watches: progress bars are drawn on a terminal alone."""
    return sys.stderr.isatty()


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; the function it gives takes what is done and the whole."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not on_terminal(), transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
