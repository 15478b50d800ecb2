"""From a manifest to a prepared library, in two passes.

First effect by effect: a LoRA is read, brought to the asked rank, and its factors are appended to one scratch file a
site. Then site by site: the scratch file becomes the record of all effects, with signs aligned. So memory holds one
LoRA, then three copies of one record, however large the library is, and the disk little more than the result.
"""

import contextlib
import shutil
import uuid
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from p2e.bases.base import Base, Site
from p2e.errors import InputError, OutputError
from p2e.files import atomic_path, sha256, write_safetensors, write_text
from p2e.lora.canonical import align_signs, canonical, energy, pad_rank
from p2e.lora.lora import Factors, Lora
from p2e.lora.manifest import Entry, Manifest, check_file, read_effect
from p2e.lora.prepared import INDEX, SITES, EffectIndex, Index, PreparedLibrary, SiteIndex, Targets

__all__ = ["Energy", "check_request", "effect_targets", "prepare_library", "write_site"]

SITES_AT_ONCE = 8  # decomposed in one batch: at most 40 MB of float64 factors for Wan 14B at rank 32


def prepare_library(
    manifest: Manifest,
    out: str | Path,
    *,
    base: Base,
    rank: int,
    targets: Targets = "canonical",
    progress: bool = False,
    device: str | torch.device = "cpu",
) -> PreparedLibrary:
    """Writes the targets of a library's effects into the folder `out`, all or nothing.

    Args:
        manifest: the library.
        out: a local folder; one that holds a prepared library is replaced.
        base: the base its LoRAs are for.
        rank: rank of all targets. "canonical" truncates and pads; "raw" pads, and refuses a LoRA of a larger rank.
        targets: "canonical", factors of equation 7 with signs aligned to the training effects; or "raw", the factors
            as the files have them, alpha folded in.
        progress: show a progress bar on stderr.
        device: where the decompositions run.

    Raises:
        InputError: another base, no training effects, effects without prompts, or a rank that does not do.
        FormatError: a LoRA is missing or cannot be read.
        OutputError: `out` cannot be written, or is a folder of something else.
    """
    if "://" in str(out):
        raise InputError(f"{out}: libraries are prepared into a local folder; name one, then copy it there")
    check_request(manifest, base, rank, targets)
    for entry in manifest.entries:
        for _, written, _ in entry.files():
            check_file(manifest.locate(written))
    with _atomic_folder(Path(out)) as folder, Progress(console=Console(stderr=True), disable=not progress) as bar:
        scratch = _Scratch(folder)
        energies = [Energy() for _ in manifest.entries]
        for index, entry in enumerate(bar.track(manifest.entries, description="LoRAs")):
            lora = read_effect(manifest, entry, base)
            for site, factors, lost in effect_targets(lora, entry, base, rank, targets, device):
                scratch.append(site, index, factors, lost)
                energies[index].add(float(energy(*lora.factors[site.key])), lost)
        train = torch.tensor([entry.split == "train" for entry in manifest.entries])
        covered = [site for site in base.sites if site.key in scratch.members]
        sites = [
            write_site(folder / SITES, site, *scratch.take(site, rank, len(train)), train=train, targets=targets)
            for site in bar.track(covered, description="sites")
        ]
        effects = tuple(seen.index(entry) for entry, seen in zip(manifest.entries, energies, strict=True))
        index = Index(
            base=base.name, rank=rank, targets=targets, manifest=manifest.hash, effects=effects, sites=tuple(sites)
        )
        write_text(folder / INDEX, index.to_json())
    return PreparedLibrary.open(out)


def check_request(manifest: Manifest, base: Base, rank: int, targets: str) -> None:
    """What can be known to fail before any LoRA is looked at.

    Raises:
        InputError: another base, no training effects, effects without prompts, a rank below 1, or unknown targets.
    """
    manifest.check_base(base)
    if rank < 1:
        raise InputError(f"rank {rank}: targets have rank 1 at least")
    if targets not in ("canonical", "raw"):
        raise InputError(f"targets {targets!r}: choose canonical or raw")
    if not any(entry.split == "train" for entry in manifest.entries):
        raise InputError("no effect of the library is in the split train; there is nothing to train on")
    if without := [entry.effect for entry in manifest.entries if not entry.prompts]:
        raise InputError(f"effects without prompts: {', '.join(without)[:200]}; describe each in the manifest")


class Energy:
    """||dW||^2 of one effect over its sites, and how much of it truncation lost."""

    def __init__(self) -> None:
        self.total = self.lost = 0.0

    def add(self, whole: float, share: float) -> None:
        self.total += whole
        self.lost += whole * share

    def index(self, entry: Entry) -> EffectIndex:
        """The effect's line of the index."""
        return EffectIndex(
            name=entry.effect, prompts=entry.prompts, split=entry.split, weight=entry.weight,
            norm=self.total**0.5, lost=self.lost / self.total if self.total else 0.0,
        )  # fmt: skip


class _Scratch:
    """One file a site: the factors of the effects that cover it, float32, one effect behind the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "scratch"
        self.folder.mkdir()
        self.members: dict[str, list[int]] = defaultdict(list)
        self.lost: dict[str, list[float]] = defaultdict(list)

    def append(self, site: Site, effect: int, factors: Factors, lost: float) -> None:
        self.members[site.key].append(effect)
        self.lost[site.key].append(lost)
        with (self.folder / site.key).open("ab") as file:
            for tensor in factors:
                file.write(tensor.float().cpu().contiguous().numpy().data)

    def take(self, site: Site, rank: int, effects: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """a, b, mask, lost of all effects; the scratch file is deleted."""
        path = self.folder / site.key
        members = self.members[site.key]
        a, b = torch.zeros(effects, rank, site.d_in), torch.zeros(effects, site.d_out, rank)
        with path.open("rb") as file:
            for effect in members:
                for target in (a[effect], b[effect]):
                    file.readinto(target.numpy().data)  # pyright: ignore[reportAttributeAccessIssue]
        path.unlink()
        mask, lost = torch.zeros(effects, dtype=torch.bool), torch.zeros(effects)
        mask[members] = True
        lost[members] = torch.tensor(self.lost[site.key])
        return a, b, mask, lost


def effect_targets(
    lora: Lora, entry: Entry, base: Base, rank: int, targets: Targets, device: str | torch.device
) -> Iterator[tuple[Site, Factors, float]]:
    """Each covered site's factors at the asked rank, and the share of its energy that was lost."""
    if targets == "raw":
        if lora.rank > rank:
            raise InputError(f"{entry.effect}: its LoRA has rank {lora.rank}; prepare raw targets at that rank or more")
        for key, factors in lora.factors.items():
            yield base.by_key[key], Factors(*pad_rank(factors.a, factors.b, rank)), 0.0
        return
    for sites in base.shapes.values():
        present = [site for site in sites if site.key in lora.factors]
        for start in range(0, len(present), SITES_AT_ONCE):
            batch = present[start : start + SITES_AT_ONCE]
            widest = max(lora.factors[site.key].rank for site in batch)
            padded = [pad_rank(f.a, f.b, widest) for f in (lora.factors[site.key] for site in batch)]
            stacked = [torch.stack(factors).to(device) for factors in zip(*padded, strict=True)]
            a, b, lost = canonical(stacked[0], stacked[1], rank)
            for i, site in enumerate(batch):
                yield site, Factors(a[i], b[i]), float(lost[i])


def write_site(
    folder: str | Path, site: Site, a: Tensor, b: Tensor, mask: Tensor, lost: Tensor, *, train: Tensor, targets: Targets
) -> SiteIndex:
    """Writes one site's record with the signs of canonical factors aligned -> its line of the index.

    Args:
        folder: local, or an fsspec URL.
        a, b: factors of all effects [E, r, d_in], [E, d_out, r], zero where `mask` [E] is false.
        lost: [E], share of the energy that truncation lost.
        train: [E] bool, the effects that have a say in signs and scales.

    Raises:
        OutputError: the record cannot be written.
    """
    if targets == "canonical":
        a, b = align_signs(a, b, mask, train)
    with atomic_path(f"{folder}/{site.key}.safetensors") as path:
        write_safetensors(path, {"a": a, "b": b, "mask": mask, "lost": lost})
        return SiteIndex(
            key=site.key, d_out=site.d_out, d_in=site.d_in, covered=int(mask.sum()),
            scale_a=_rms(a[mask & train]), scale_b=_rms(b[mask & train]),
            bytes=path.stat().st_size, sha256=sha256(path),
        )  # fmt: skip


def _rms(x: Tensor) -> float:
    """Root mean square of all entries; 1 where there are none or all are zero, so that it can be divided by."""
    squares = x.double().square()
    while squares.ndim:
        squares = squares.sum(-1)  # dimension by dimension: the same to the bit with any number of threads
    return float((squares / max(x.numel(), 1)).sqrt()) or 1.0


@contextlib.contextmanager
def _atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`, renamed onto it at the end, removed on any error."""
    if target.exists() and not (target / INDEX).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{target}: is there already and no prepared library; choose another place")
    mark = uuid.uuid4().hex[:8]
    temporary, old = target.with_name(f".{target.name}.{mark}"), target.with_name(f".{target.name}.{mark}.old")
    try:
        (temporary / SITES).mkdir(parents=True)
        yield temporary
        shutil.rmtree(temporary / "scratch")
        if target.exists():
            target.replace(old)
        temporary.replace(target)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{target}: cannot be written ({error.strerror or error}); choose another place") from None
    finally:
        if old.exists() and not target.exists():
            old.replace(target)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
