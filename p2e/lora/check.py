"""The check of a library before it is trained on: every LoRA read, described, and compared with the others.

Memory holds one LoRA at a time, two where a pair looks alike. To find such pairs, each update is reduced to a sketch
that is linear in dW, so that it cannot depend on how dW is factorised: P dW Q at each site, with fixed Gaussian P
[k, d_out] and Q [d_in, k]. Pairs whose sketches nearly coincide are then compared exactly, by Gram matrices.
"""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from p2e.bases.base import Base
from p2e.errors import P2EError
from p2e.lora.canonical import inner
from p2e.lora.lora import Lora
from p2e.lora.manifest import Entry, Manifest, read_effect
from p2e.lora.summary import site_energies
from p2e.lora.triggers import Trigger, find_triggers

__all__ = ["Duplicate", "EntryReport", "LibraryReport", "check_library"]

SKETCH = 8  # k; a sketch has k^2 numbers a site
SUSPECT = 1e-2  # 1 - cosine of two sketches from which the pair is compared exactly
DUPLICATE = 1e-4  # 1 - cosine of two updates from which they count as the same


@dataclass(frozen=True)
class EntryReport:
    """One effect: what its LoRA is, what is wrong with it, and what deserves a look.

    Attributes:
        family: "F1" to "F7", "" where the LoRA cannot be read.
        ranks: the ranks that occur, ascending.
        covered, total: sites the LoRA adapts, of how many.
        scales: smallest and largest scale that was folded in.
        norm: ||dW||_F over all sites.
        problems: what keeps the entry from being used, each one line.
        notes: what does not, such as prompts that leak the effect.
    """

    effect: str
    split: str
    family: str = ""
    ranks: tuple[int, ...] = ()
    covered: int = 0
    total: int = 0
    scales: tuple[float, float] = (1.0, 1.0)
    norm: float = 0.0
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Duplicate:
    """Two effects with the same update up to factorisation and strength: `ratio` is ||dW_second|| / ||dW_first||."""

    first: str
    second: str
    cosine: float
    ratio: float


@dataclass(frozen=True)
class LibraryReport:
    """What `check_library` found. `ok` is true where no entry has a problem."""

    base: str
    entries: tuple[EntryReport, ...]
    duplicates: tuple[Duplicate, ...] = ()
    shared_prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    triggers: dict[str, tuple[Trigger, ...]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not any(entry.problems for entry in self.entries)

    def to_json(self) -> str:
        return json.dumps({"ok": self.ok, **asdict(self)}, indent=2) + "\n"

    def table(self) -> Table:
        """A table for the terminal, one row an effect; problems in red, notes in yellow."""
        bad = sum(bool(entry.problems) for entry in self.entries)
        table = Table(title=f"{len(self.entries)} effects for {self.base}, {bad} with problems")
        for name in ("effect", "split", "format", "rank", "sites", "scale", "norm", "remarks"):
            table.add_column(name, justify="right" if name in ("rank", "sites", "scale", "norm") else "left")
        for entry in self.entries:
            remarks = [f"[red]{_escape(text)}[/red]" for text in entry.problems]
            remarks += [f"[yellow]{_escape(text)}[/yellow]" for text in entry.notes]
            read = bool(entry.family or entry.covered)
            low, high = (f"{scale:.3g}" for scale in entry.scales)
            table.add_row(
                _escape(entry.effect),
                entry.split,
                entry.family,
                ", ".join(map(str, entry.ranks)),
                f"{entry.covered}/{entry.total}" if read else "",
                "" if not read else low if low == high else f"{low} to {high}",
                f"{entry.norm:.4g}" if read else "",
                "\n".join(remarks),
            )
        return table


def check_library(manifest: Manifest, base: Base, *, progress: bool = False) -> LibraryReport:
    """Reads every LoRA of a library and reports what it is and what is wrong.

    A file that is missing, corrupt or for another base becomes a problem of its entry, not an error.

    Args:
        progress: show a progress bar on stderr.

    Raises:
        InputError: the whole library is for another base.
    """
    manifest.check_base(base)
    facts: dict[str, dict[str, Any]] = {}
    sketches: dict[str, Tensor] = {}
    with Progress(console=Console(stderr=True), disable=not progress) as bar:
        for entry in bar.track(manifest.entries, description="LoRAs"):
            facts[entry.effect] = _facts(manifest, entry, base, sketches)
        duplicates = _duplicates(manifest, base, sketches, facts)
    prompts = {entry.effect: entry.prompts for entry in manifest.entries}
    shared = _shared_prompts(prompts)
    triggers = find_triggers(prompts)
    notes: dict[str, list[str]] = defaultdict(list)
    for pair in duplicates:
        same = "the same update as" if abs(pair.ratio - 1) < DUPLICATE else f"1/{pair.ratio:.4g} times the update of"
        notes[pair.first].append(f"{same} {pair.second}")
        same = "the same update as" if abs(pair.ratio - 1) < DUPLICATE else f"{pair.ratio:.4g} times the update of"
        notes[pair.second].append(f"{same} {pair.first}")
    for prompt, effects in shared.items():
        for effect in effects:
            others = ", ".join(other for other in effects if other != effect)
            notes[effect].append(f"shares the prompt {prompt[:60]!r} with {others}")
    for effect, found in triggers.items():
        tokens = ", ".join(f"{trigger.token} ({trigger.kind})" for trigger in found)
        notes[effect].append(f"prompts leak the effect: {tokens}")
    entries = tuple(
        EntryReport(entry.effect, entry.split, notes=tuple(notes[entry.effect]), **facts[entry.effect])
        for entry in manifest.entries
    )
    return LibraryReport(base.name, entries, duplicates, shared, {e: tuple(t) for e, t in triggers.items()})


def _facts(manifest: Manifest, entry: Entry, base: Base, sketches: dict[str, Tensor]) -> dict[str, Any]:
    """The fields of one entry's report; its sketch goes into `sketches`."""
    problems = [] if entry.prompts else ["no prompts; describe the effect in the manifest"]
    try:
        lora = read_effect(manifest, entry, base)
    except P2EError as error:
        return {"total": len(base.sites), "problems": (*problems, str(error))}
    norm = sum(site_energies(lora).values()) ** 0.5
    if norm > 0:
        sketches[entry.effect] = _sketch(lora, base)
    else:
        problems.append("the update is zero; the LoRA was not trained")
    scales = [lora.provenance.scales.get(key, 1.0) for key in lora.factors]
    return {
        "family": lora.provenance.family,
        "ranks": tuple(sorted({factors.rank for factors in lora.factors.values()})),
        "covered": len(lora.factors),
        "total": len(base.sites),
        "scales": (min(scales), max(scales)),
        "norm": norm,
        "problems": tuple(problems),
    }


def _sketch(lora: Lora, base: Base) -> Tensor:
    """[sites, k, k], of unit length: P dW Q of every site, zero where the LoRA does not reach."""
    sketch = torch.zeros(len(base.sites), SKETCH, SKETCH, dtype=torch.float64)
    for (d_out, d_in), sites in base.shapes.items():
        generator = torch.Generator().manual_seed(d_out * 2**20 + d_in)
        p = torch.randn(SKETCH, d_out, generator=generator)
        q = torch.randn(d_in, SKETCH, generator=generator)
        for site in sites:
            if site.key in lora.factors:
                a, b = lora.factors[site.key]
                sketch[site.index] = (p @ b.float()).double() @ (a.float() @ q).double()
    return sketch / sketch.norm().clamp_min(torch.finfo(torch.float64).tiny)


def _duplicates(
    manifest: Manifest, base: Base, sketches: dict[str, Tensor], facts: dict[str, dict[str, Any]]
) -> tuple[Duplicate, ...]:
    """Pairs of the same update: suspects by their sketches, confirmed by <dW_1, dW_2> over all sites."""
    names = list(sketches)
    if len(names) < 2:
        return ()
    flat = torch.stack([sketches[name].flatten() for name in names])
    suspects = torch.triu(flat @ flat.T > 1 - SUSPECT, diagonal=1)
    entries = {entry.effect: entry for entry in manifest.entries}
    found: list[Duplicate] = []
    for i, row in enumerate(suspects):
        if not bool(row.any()):
            continue
        first = read_effect(manifest, entries[names[i]], base)
        for j in row.nonzero().flatten().tolist():
            second = read_effect(manifest, entries[names[j]], base)
            shared = first.factors.keys() & second.factors.keys()
            product = sum(float(inner(*first.factors[key], *second.factors[key])) for key in sorted(shared))
            norms = facts[names[i]]["norm"], facts[names[j]]["norm"]
            cosine = product / (norms[0] * norms[1])
            if cosine > 1 - DUPLICATE:
                found.append(Duplicate(names[i], names[j], min(cosine, 1.0), norms[1] / norms[0]))
    return tuple(found)


def _shared_prompts(prompts: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Prompts that several effects have, apart from case and white space, with those effects."""
    users: dict[str, list[str]] = defaultdict(list)
    for effect, texts in prompts.items():
        for text in dict.fromkeys(" ".join(text.lower().split()) for text in texts):
            users[text].append(effect)
    return {text: tuple(effects) for text, effects in users.items() if len(effects) > 1}


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
