"""`p2e lora`: look at a LoRA file, rewrite it in another format, blend several."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from p2e.commands.options import (
    AsJson,
    BaseOption,
    DtypeOption,
    Expert,
    Format,
    FormatOption,
    Output,
    base_or_none,
    parse_weighted,
)  # fmt: skip

app = typer.Typer(help="Look at LoRA files, convert and blend them.")


@app.command()
def info(
    file: Annotated[str, typer.Argument(help="LoRA file, folder or fsspec URL.")],
    base: BaseOption = None,
    expert: Expert = None,
    as_json: AsJson = False,
) -> None:
    """Print what a LoRA file holds: format, base, coverage, rank, folded scales, norm."""
    from p2e.bases import get_base
    from p2e.lora.formats import read_lora
    from p2e.lora.summary import lora_summary

    table = base_or_none(base)
    lora = read_lora(file, table, expert)
    summary = lora_summary(lora, table or get_base(lora.base))
    print(json.dumps(summary, indent=2) if as_json else summary_text(summary))


def summary_text(summary: Mapping[str, Any]) -> str:
    """Lines of "name  value"; a module type or a key that is as expected has none."""

    def counts(table: Mapping[str, int]) -> str:
        return next(iter(table)) if len(table) == 1 else ", ".join(f"{k} ({n} sites)" for k, n in table.items())

    parts = {name: f"{m['covered']} of {m['total']}" for name, m in summary["modules"].items()}
    rows = {
        "file": summary["source"],
        "format": summary["family"],
        "base": summary["base"],
        "sites": f"{summary['sites']['covered']} of {summary['sites']['total']}",
        **{f"  {name}": part for name, part in parts.items() if len(set(part.split(" of "))) > 1},
        "rank": counts(summary["ranks"]),
        "folded scale": counts(summary["scales"]),
        "norm": f"{summary['norm']:.4g}",
        "parameters": f"{summary['parameters']:,}",
        "biases": str(summary["biases"]),
        **{f"ignored {key}": reason for key, reason in summary["ignored"].items()},
        **{f"header {key}": value for key, value in summary["metadata"].items()},
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="LoRA file, folder or fsspec URL, of any format.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="Where to write the result.")],
    to: Annotated[Format, typer.Option("--to", help="Names of the layers in the result.")] = "wan",
    base: BaseOption = None,
    expert: Expert = None,
    dtype: DtypeOption = "bfloat16",
) -> None:
    """Rewrite a LoRA file in another format, every scale folded into the factors."""
    import torch

    from p2e.bases import get_base
    from p2e.lora.formats import read_lora, write_lora

    table = base_or_none(base)
    lora = read_lora(source, table, expert)
    table = table or get_base(lora.base)
    written = write_lora(target, lora, table, to, getattr(torch, dtype), lora.provenance.metadata)
    for key, reason in lora.provenance.ignored.items():
        print(f"left out {key}: {reason}")
    for path in written:
        print(f"wrote {path}: {to} names, {len(lora.factors)} of {len(table.sites)} sites, rank {lora.rank}")


@app.command()
def blend(
    terms: Annotated[list[str], typer.Argument(metavar="FILE[:WEIGHT]...", help="LoRA files, each with its weight.")],
    output: Output,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the blend; exact if left out.")] = None,
    base: BaseOption = None,
    expert: Expert = None,
    to: FormatOption = "wan",
    dtype: DtypeOption = "bfloat16",
) -> None:
    """Add up LoRAs: exact by joining ranks, then cut to the rank asked for."""
    import torch

    from p2e import __version__
    from p2e.bases import get_base
    from p2e.lora.compose import blend as blend_loras
    from p2e.lora.formats import read_lora, write_lora

    table = base_or_none(base)
    loras = []
    for path, weight in map(parse_weighted, terms):
        loras.append((read_lora(path, table, expert), weight))
        table = table or get_base(loras[0][0].base)
    assert table is not None  # at least one term is required
    result = blend_loras(loras, rank)
    metadata = {**result.lora.provenance.metadata, "p2e.version": __version__}
    for path in write_lora(output, result.lora, table, to, getattr(torch, dtype), metadata):
        print(f"wrote {path}: rank {result.lora.rank}, {100 * result.kept_energy:.2f} % of the energy kept")
