"""Options and arguments that several commands share."""

import math
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from p2e.errors import InputError

if TYPE_CHECKING:
    from p2e.bases import Base

__all__ = [
    "AsJson", "BaseFolder", "BaseOption", "Device", "Dtype", "DtypeOption", "Expert", "Format", "FormatOption",
    "Output", "base_or_none", "parse_weighted", "pick_device",
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
