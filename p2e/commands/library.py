"""`p2e library`: check a library of LoRAs, and prepare its targets for training."""

from typing import Annotated, Literal

import typer

from p2e.commands.options import AsJson, Device, base_or_none, on_terminal, pick_device, shipped

app = typer.Typer(help="Check a library of LoRAs and prepare it for training.")

ManifestFile = Annotated[str, typer.Argument(metavar="MANIFEST", help="YAML, JSON or JSONL file, or world.")]
BaseOfLibrary = Annotated[
    str | None,
    typer.Option("--base", metavar="NAME|DIR", help="Base model, where the manifest names one p2e has no table of."),
]


@app.command()
def check(manifest: ManifestFile, base: BaseOfLibrary = None, as_json: AsJson = False) -> None:
    """Report every LoRA's format, rank, coverage, scale and norm, and what is wrong with the library.

    The exit code is 1 where an entry cannot be used.
    """
    from rich.console import Console

    from p2e.bases import get_base
    from p2e.lora.library import Manifest, check_library

    library = Manifest.load(shipped(manifest, "library/manifest.yaml"))
    report = check_library(library, base_or_none(base) or get_base(library.base), progress=on_terminal())
    if as_json:
        print(report.to_json(), end="")
    else:
        Console().print(report.table())
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def prepare(
    manifest: ManifestFile,
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Folder for the prepared library.")],
    rank: Annotated[int, typer.Option(min=1, help="Rank of every target, by padding or truncation.")],
    targets: Annotated[
        Literal["canonical", "raw"], typer.Option(help="Canonical factors, or those of the files.")
    ] = "canonical",
    base: BaseOfLibrary = None,
    device: Device = None,
) -> None:
    """Write the canonical factors of a library, one record a site."""
    from p2e.bases import get_base
    from p2e.lora.library import Manifest, prepare_library

    library = Manifest.load(shipped(manifest, "library/manifest.yaml"))
    table = base_or_none(base) or get_base(library.base)
    prepared = prepare_library(
        library, output, base=table, rank=rank, targets=targets, progress=on_terminal(), device=pick_device(device)
    )
    lost = sum(effect.lost for effect in prepared.index.effects) / len(prepared.index.effects)
    print(
        f"wrote {output}: {len(prepared.effects)} effects, {len(prepared.keys)} of {len(table.sites)} sites, "
        f"rank {prepared.rank} {prepared.targets}, {100 * lost:.2f} % of the energy lost"
    )
