"""From a measure file to tables: `python -m eval.world.tables MEASURE.json [--out DIR] [--ablation NAME=COLUMN ...]`.

Twins of the paper's tables 1 and 2 (all methods on training effects asked by unseen paraphrases, held-out effects and
OOD effects) and of its tables 3, 4 and 8 (ablations: other checkpoints). Shares are ratios of means over effects:
    share of the gain   (mean(column) - mean(base)) / (mean(lora) - mean(base))
    share over still    mean(column) / mean(lora), the gain over a picture that stands still
A table holds the effects that have all of its columns, so that its rows compare.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.world.statistics import Array, Estimate, mean_of, share_of
from p2e.errors import InputError
from p2e.files import read_text, write_text
from p2e.world.columns import Column
from p2e.world.measurement import Measurement

__all__ = ["MAIN", "Cell", "Table", "ablation_table", "category_table", "main_table", "markdown"]

SPLITS = {"train": "training effects, unseen paraphrases", "heldout": "held-out effects", "ood": "OOD effects"}
# Title -> column, in the order of the paper's tables 1 and 2; what was not measured is left out.
MAIN = {
    "standing still": "still", "base": "base", "HyperDreamBooth-style": "hdb", "mean LoRA": "mean",
    "nearest prompt's LoRA": "nearest", "softmax over LoRAs": "softmax", "random prompt": "random",
    "zero-shot": "zero", "Init-50": "init:50", "Init-100": "init:100", "LoRA-100": "lora:100", "LoRA-1000": "lora",
    "cap of the autoencoder": "cap",
}  # fmt: skip
REFERENCE, BASE = "lora", "base"


@dataclass(frozen=True)
class Cell:
    """A column on one group of effects.

    Attributes:
        fidelity, gain, over_still: mean and shares; a share is None without the columns it needs.
        seed_deviation: standard deviation of the mean fidelity between seeds of the noise; NaN with one seed.
        difference: mean over effects of the difference from another column, effect by effect.
    """

    fidelity: Estimate
    gain: Estimate | None
    over_still: Estimate | None
    seed_deviation: float
    difference: Estimate | None = None


@dataclass(frozen=True)
class Table:
    """Cells by row title and group of effects.

    Attributes:
        title: of the table.
        groups: name -> number of effects.
        rows: row title -> group -> cell.
        left_out: effects of the file that lack one of the columns.
        notes: row title -> what else is known of it.
    """

    title: str
    groups: Mapping[str, int]
    rows: Mapping[str, Mapping[str, Cell]]
    left_out: int = 0
    notes: Mapping[str, str] | None = None


def per_effect(found: Measurement, names: Sequence[str], column: str) -> Array:
    """Mean fidelity of each effect over its scenes, [E]; a scene in which nothing happens does not count."""
    return np.array([np.nanmean(found.effects[name].scores[column]) for name in names], np.float64)


def cell(
    found: Measurement, names: Sequence[str], column: str, *, shares: bool = True, against: str | None = None,
    seed: int = 0,
) -> Cell:  # fmt: skip
    own = per_effect(found, names, column)
    difference = None if against is None else mean_of(own - per_effect(found, names, against), seed=seed)
    have = all(found.has(name, REFERENCE) for name in names)
    gain = over_still = None
    if shares and have and names:
        reference = per_effect(found, names, REFERENCE)
        over_still = share_of(own, reference, seed=seed)
        if all(found.has(name, BASE) for name in names):
            gain = share_of(own, reference, per_effect(found, names, BASE), seed=seed)
    by_seed = np.array([found.effects[name].seeds[column] for name in names]).mean(0) if names else np.zeros(0)
    deviation = float(by_seed.std(ddof=1)) if by_seed.size > 1 else math.nan
    return Cell(mean_of(own, seed=seed), gain, over_still, deviation, difference)


def build(
    title: str, found: Measurement, columns: Mapping[str, str], groups: Mapping[str, str], against: str | None = None
) -> Table:
    """A table of `columns` (title -> column) over groups of effects (effect -> group).

    Args:
        against: column from which the others' differences are given.
    """
    needed = {*columns.values()}
    whole = {name: group for name, group in groups.items() if all(found.has(name, c) for c in needed)}
    order = [g for g in dict.fromkeys(groups.values()) if g in whole.values()]
    members = {group: [name for name, g in whole.items() if g == group] for group in order}
    rows = {
        row: {
            group: cell(found, names, column, shares=column not in ("still", "cap"), against=other)
            for group, names in members.items()
        }
        for row, column in columns.items()
        for other in [None if column == against else against]
    }
    return Table(title, {g: len(names) for g, names in members.items()}, rows, len(groups) - len(whole))


def measured(found: Measurement, columns: Mapping[str, str]) -> dict[str, str]:
    """Those of the columns that some effect has."""
    return {title: c for title, c in columns.items() if any(found.has(name, c) for name in found.effects)}


def main_table(found: Measurement, columns: Mapping[str, str] = MAIN) -> Table:
    """Twin of tables 1 and 2: methods by split.

    Raises:
        InputError: none of the columns was measured.
    """
    chosen = measured(found, columns)
    if not chosen:
        raise InputError(
            f"the measure file has none of the columns {', '.join(columns.values())}; measure some of them"
        )
    return build(
        "Methods", found, chosen, {n: row.split for s in SPLITS for n, row in found.effects.items() if row.split == s}
    )


def category_table(found: Measurement, split: str, columns: Mapping[str, str] = MAIN) -> Table:
    """The same by category of the effects of one split."""
    groups = {name: row.category for name, row in sorted(found.effects.items(), key=lambda item: item[1].category)
              if row.split == split}  # fmt: skip
    return build(f"By category: {SPLITS[split]}", found, measured(found, columns), groups)


def ablation_table(found: Measurement, rows: Mapping[str, str], folder: Path | None = None) -> Table:
    """Twin of tables 3, 4 and 8: checkpoints by split, with their differences from the first one. Effects differ far
    more than checkpoints do, so that only the differences tell what a change of the checkpoint is worth.

    Args:
        rows: title -> column, such as {"full": "zero", "without weights": "zero:none"}.
        folder: of the checkpoints; the final training loss of each is noted where its history.json is there.

    Raises:
        InputError: a column was not measured.
    """
    for title, column in rows.items():
        if not any(found.has(name, column) for name in found.effects):
            raise InputError(f"{title}: the measure file has no column {column}; measure it, or leave the row out")
    groups = {n: row.split for s in SPLITS for n, row in found.effects.items() if row.split == s}
    notes = {}
    for title, column in rows.items():
        history = folder / Column.parse(column).checkpoint / "history.json" if folder else None
        if history and history.exists():
            last = json.loads(read_text(history))["history"][-1]
            notes[title] = f"{last['factor_error']:.3f} / {last['update_error']:.3f}"
    table = build("Ablations", found, dict(rows), groups, next(iter(rows.values()), None))
    return Table(table.title, table.groups, table.rows, table.left_out, notes or None)


def markdown(table: Table, detail: bool = True) -> str:
    """The table as Markdown: fidelity, then each share, of every row in every group."""
    parts = [f"### {table.title}"]
    if table.left_out:
        parts.append(f"{table.left_out} effects of the file lack one of these columns and are left out.")
    measures = [("fidelity", "Mean fidelity", _number),
                ("difference", f"Difference from {next(iter(table.rows), '')}", _signed),
                ("gain", "Share of the LoRA's gain over the base", _percent),
                ("over_still", "Share of the LoRA's gain over a still picture", _percent)]  # fmt: skip
    for name, title, show in measures:
        found = {row: {group: getattr(c, name) for group, c in cells.items()} for row, cells in table.rows.items()}
        kept = {row: cells for row, cells in found.items() if any(c is not None for c in cells.values())}
        if kept:
            notes = table.notes if name == "fidelity" else None
            parts.append(f"{title}" + (", 95% interval over effects" if detail else "") + ":")
            parts.append(_rows(table.groups, kept, show, detail, notes))
    deviations = {
        row: {g: c.seed_deviation for g, c in cells.items() if not math.isnan(c.seed_deviation)}
        for row, cells in table.rows.items()
    }
    if any(deviations.values()):
        worst = {g: max((d[g] for d in deviations.values() if g in d), default=math.nan) for g in table.groups}
        spread = ", ".join(f"{group} {value:.4f}" for group, value in worst.items())
        parts.append(f"Largest standard deviation between seeds of a mean fidelity: {spread}.")
    return "\n\n".join(parts) + "\n"


def _rows(
    groups: Mapping[str, int], rows: Mapping[str, Mapping[str, Estimate | None]], show: Any, detail: bool,
    notes: Mapping[str, str] | None,
) -> str:  # fmt: skip
    head = ["method", *(f"{group} ({count})" for group, count in groups.items())]
    head += ["final training error: factors / update"] if notes else []
    lines = [head, ["---"] * len(head)]
    for row, cells in rows.items():
        line = [row, *(show(cells[group], detail) for group in groups)]
        lines.append([*line, notes.get(row, "")] if notes else line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(x: Estimate | None, detail: bool) -> str:
    if x is None or math.isnan(x.value):
        return "-"
    return f"{x.value:.3f}" + (f" ({x.low:.3f} to {x.high:.3f})" if detail and not math.isnan(x.low) else "")


def _signed(x: Estimate | None, detail: bool) -> str:
    if x is None or math.isnan(x.value):
        return "-"
    return f"{x.value:+.3f}" + (f" ({x.low:+.3f} to {x.high:+.3f})" if detail and not math.isnan(x.low) else "")


def _percent(x: Estimate | None, detail: bool) -> str:
    if x is None or math.isnan(x.value):
        return "-"
    return f"{x.value:.0%}" + (f" ({x.low:.0%} to {x.high:.0%})" if detail and not math.isnan(x.low) else "")


def as_json(tables: Sequence[Table]) -> str:
    """All numbers; NaN as null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        return None if isinstance(value, float) and math.isnan(value) else value

    return json.dumps([plain(asdict(table)) for table in tables], indent=1) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", type=Path, help="fidelity.json of a table")
    parser.add_argument("--out", type=Path, help="write tables.md and tables.json there; else Markdown is printed")
    parser.add_argument(
        "--ablation", action="append", default=[], metavar="TITLE=COLUMN", help="a row of the ablations"
    )
    parser.add_argument(
        "--row", action="append", default=[], metavar="TITLE=COLUMN", help="one more row of the methods"
    )
    options = parser.parse_args(arguments)
    found = Measurement.load(options.measure)
    tables = [main_table(found, MAIN | _pairs(options.row))]
    present = {row.split for row in found.effects.values()}
    tables += [category_table(found, split, MAIN | _pairs(options.row)) for split in SPLITS if split in present]
    if options.ablation:
        tables.append(ablation_table(found, _pairs(options.ablation), options.measure.parent))
    text = "\n".join(markdown(table) for table in tables)
    if options.out is None:
        print(text)
        return
    write_text(options.out / "tables.md", text)
    write_text(options.out / "tables.json", as_json(tables))


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.rpartition("=") for text in texts]
    for title, _, column in pairs:
        if not title:
            raise InputError(f"{column!r} is not a row; write TITLE=COLUMN, such as 'no weights=zero:none'")
        Column.parse(column)
    return {title: column for title, _, column in pairs}


if __name__ == "__main__":
    main()
