"""One effect's targets in a file of its own, so that many machines can prepare one library, in any order.

A shard holds what the first pass of `p2e.lora.prepare` makes of a LoRA, the second pass reads site by site out of all
shards. A shard is named by a digest of all it depends on: one that is there need not be made again.

Shapes: E effects, r rank. A shard has `KEY.a` [r, d_in] and `KEY.b` [d_out, r] float32 for each site it covers, and
their shares of lost energy as `lost`.
"""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import fsspec
import torch
from torch import Tensor

from p2e.bases.base import Base, Site
from p2e.errors import FormatError
from p2e.files import SafetensorsFile, write_safetensors
from p2e.lora.canonical import energy
from p2e.lora.manifest import Entry, Manifest, read_effect
from p2e.lora.prepare import Energy, effect_targets
from p2e.lora.prepared import Targets

__all__ = ["Shard", "collect_sites", "file_stamp", "read_shard", "shard_digest", "write_shard"]

RECIPE = "1"
"""Version of how targets are made; a change of it makes all shards anew."""

HEADER_KEY = "p2e.shard"
STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")


def file_stamp(path: str) -> str | None:
    """What tells one version of a file from the next without reading it: size, and time or entity tag of its file
    system; None where it cannot be looked at. A folder is stamped by its files.
    """
    try:
        file_system, inner = fsspec.core.url_to_fs(path)
        info = file_system.info(inner)
        found = file_system.ls(inner, detail=True) if info["type"] == "directory" else [info]
    except Exception:  # every file system has errors of its own; reading the file will say what is wrong
        return None
    lines = sorted(
        json.dumps([entry["name"], entry["size"], *(str(entry[key]) for key in STAMPS if key in entry)])
        for entry in found
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def shard_digest(manifest: Manifest, entry: Entry, base: Base, rank: int, targets: Targets) -> str:
    """Hex digest of all that an effect's targets depend on: its files, the base's sites, the rank and the form."""
    sources = []
    for expert, written, digest in entry.files():
        path = manifest.locate(written)
        beside = f"{path.rpartition('/')[0] or '.'}/adapter_config.json"  # scales may stand there
        sources.append([expert, path, digest, file_stamp(path), file_stamp(beside)])
    sites = [(site.key, site.d_out, site.d_in) for site in base.sites]
    said = json.dumps([RECIPE, sources, base.name, sites, rank, targets])
    return hashlib.sha256(said.encode()).hexdigest()


@dataclass(frozen=True)
class Shard:
    """A shard that is on disk.

    Attributes:
        path: local, or an fsspec URL.
        keys: the sites it covers.
        energy: of its whole update, and what truncation lost.
    """

    path: str
    keys: frozenset[str]
    energy: Energy


def write_shard(
    path: str, manifest: Manifest, entry: Entry, base: Base, rank: int, targets: Targets, *,
    digest: str, device: str | torch.device = "cpu",
) -> None:  # fmt: skip
    """Reads an effect's LoRA and writes its targets.

    Raises:
        FormatError: the LoRA is missing or cannot be read.
        InputError: its rank is too large for raw targets.
        OutputError: the shard cannot be written.
    """
    lora = read_effect(manifest, entry, base)
    seen = Energy()
    made = {}
    for site, factors, lost in effect_targets(lora, entry, base, rank, targets, device):
        made[site.key] = (factors, lost)
        seen.add(float(energy(*lora.factors[site.key])), lost)
    tensors: dict[str, Tensor] = {}
    for site in base.sites:
        if site.key in made:
            factors = made[site.key][0]
            tensors |= {f"{site.key}.a": factors.a.float().cpu(), f"{site.key}.b": factors.b.float().cpu()}
    keys = [site.key for site in base.sites if site.key in made]
    tensors["lost"] = torch.tensor([made[key][1] for key in keys])
    said = {"digest": digest, "keys": keys, "total": seen.total, "lost": seen.lost}
    write_safetensors(path, tensors, {HEADER_KEY: json.dumps(said)})


def read_shard(path: str, digest: str) -> Shard | None:
    """The shard at `path`; None where there is none that is whole and has that digest."""
    with contextlib.suppress(FormatError, ValueError, KeyError, TypeError), SafetensorsFile(path) as file:
        said = json.loads(file.metadata[HEADER_KEY])
        if said["digest"] == digest:
            seen = Energy()
            seen.total, seen.lost = said["total"], said["lost"]
            return Shard(path, frozenset(said["keys"]), seen)
    return None


def collect_sites(
    sites: Sequence[Site], shards: Sequence[Shard], rank: int
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """a [E, r, d_in], b [E, d_out, r], mask [E] and lost [E] of each of a few sites, from the shards of all E effects.

    Each shard is opened once, and only these sites are read of it.

    Raises:
        FormatError: a shard cannot be read.
    """
    effects = len(shards)
    records = [
        (
            torch.zeros(effects, rank, site.d_in), torch.zeros(effects, site.d_out, rank),
            torch.zeros(effects, dtype=torch.bool), torch.zeros(effects),
        )
        for site in sites
    ]  # fmt: skip
    for effect, shard in enumerate(shards):
        covered = [(site, record) for site, record in zip(sites, records, strict=True) if site.key in shard.keys]
        if not covered:
            continue
        with SafetensorsFile(shard.path) as file:
            keys: list[str] = json.loads(file.metadata[HEADER_KEY])["keys"]
            shares = dict(zip(keys, file.read("lost"), strict=True))
            for site, (a, b, mask, lost) in covered:
                a[effect], b[effect] = file.read(f"{site.key}.a"), file.read(f"{site.key}.b")
                mask[effect], lost[effect] = True, shares[site.key]
    return records
