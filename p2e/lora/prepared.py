"""A prepared library: the training targets of every effect, one record a site, readable lazily and from anywhere.

    index.json                  base, rank, targets, effects with prompts and splits, sites with scales and digests
    sites/KEY.safetensors       a [E, r, d_in], b [E, d_out, r] float32, mask [E] bool, lost [E] float32

One file a site, since a site is what training reads at a time; the largest is E r (d_out + d_in) 4 bytes, 170 MB for 70
effects on the widest layer of Wan 14B at rank 32. Sites that no effect covers have no file and no key.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor

from p2e.config import Settings
from p2e.errors import ConfigError, FormatError, InputError
from p2e.files import SafetensorsFile, file_sizes, read_text, sha256

__all__ = ["Effect", "EffectIndex", "Index", "PreparedLibrary", "SiteIndex", "SiteRecord", "Targets"]

Targets = Literal["canonical", "raw"]
INDEX = "index.json"
SITES = "sites"
AGAIN = "prepare the library again with `p2e library prepare`"


@dataclass(frozen=True)
class Effect:
    """One effect: its name, the prompts that describe it, its split ("train", "heldout", "ood") and sampling weight."""

    name: str
    prompts: tuple[str, ...]
    split: str
    weight: float


@dataclass(frozen=True)
class SiteRecord:
    """The targets of all effects at one site.

    Attributes:
        key: the site's key in its base.
        a: A* [E, r, d_in] float32, zero where an effect does not cover the site.
        b: B* [E, d_out, r] float32, likewise.
        mask: [E] bool, the effects that cover it.
        lost: [E] float32, share of ||dW||^2 lost to truncation.
        scale_a, scale_b: root mean square of the entries of A*, of B*, over the training effects that cover the site;
            1 where there are none. The hypernetwork regresses a / scale_a and b / scale_b.
    """

    key: str
    a: Tensor
    b: Tensor
    mask: Tensor
    lost: Tensor
    scale_a: float
    scale_b: float


class EffectIndex(Settings):
    """An effect in the index; `norm` is ||dW||_F over all its sites, `lost` the share of ||dW||^2 truncation lost."""

    name: str
    prompts: tuple[str, ...]
    split: str
    weight: float
    norm: float
    lost: float


class SiteIndex(Settings):
    """A site in the index: shape, scales, how many effects cover it, and the size and digest of its file."""

    key: str
    d_out: int
    d_in: int
    covered: int
    scale_a: float
    scale_b: float
    bytes: int
    sha256: str

    @property
    def file(self) -> str:
        return f"{SITES}/{self.key}.safetensors"


class Index(Settings):
    """The whole of index.json but its own digest; `manifest` is the hash of the manifest it was prepared from."""

    format: Literal["p2e-prepared-1"] = "p2e-prepared-1"
    base: str
    rank: int
    targets: Targets
    manifest: str
    effects: tuple[EffectIndex, ...]
    sites: tuple[SiteIndex, ...]

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps({"hash": self.hash, **self.model_dump(mode="json")}, indent=1) + "\n"


class PreparedLibrary:
    """A prepared library, opened without reading any target.

    Attributes:
        path: its folder, local or an fsspec URL.
        base_name, rank, targets: what it was prepared for.
        effects: all effects, in the order of the first dimension of every record.
        keys: keys of the sites that at least one effect covers, in the base's order.
        hash: hex digest of the index and, through the digests in it, of every file.
        index: the index itself, with norms and statistics.
    """

    def __init__(self, path: str, index: Index) -> None:
        self.path = path
        self.index = index
        self.base_name = index.base
        self.rank = index.rank
        self.targets: Targets = index.targets
        self.hash = index.hash
        self.effects = tuple(Effect(e.name, e.prompts, e.split, e.weight) for e in index.effects)
        self._sites = {site.key: site for site in index.sites}
        self.keys = list(self._sites)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Opens a folder and makes sure that every part is there at its full size.

        Raises:
            FormatError: no prepared library, an index that was changed, or a file that is missing or truncated.
        """
        folder = str(path).rstrip("/")
        try:
            values = json.loads(read_text(f"{folder}/{INDEX}"))
            digest = values.pop("hash", None) if isinstance(values, dict) else None
            index = Index.parse(values, f"{folder}/{INDEX}")
        except ConfigError as error:
            raise FormatError(f"{error}; or {AGAIN}") from None
        except InputError:
            raise FormatError(f"{folder}: not a prepared library, {INDEX} is missing or not text; {AGAIN}") from None
        except ValueError as error:
            raise FormatError(f"{folder}/{INDEX}: not JSON ({error}); {AGAIN}") from None
        if digest != index.hash:
            raise FormatError(f"{folder}/{INDEX}: was changed since it was written; {AGAIN}")
        try:
            sizes = file_sizes(f"{folder}/{SITES}")
        except InputError as error:
            raise FormatError(str(error)) from None
        for site in index.sites:
            found = sizes.get(f"{site.key}.safetensors")
            if found != site.bytes:
                state = "is missing" if found is None else f"has {found} bytes instead of {site.bytes}"
                raise FormatError(f"{folder}/{site.file}: {state}; copy the library again, or {AGAIN}")
        return cls(folder, index)

    def site(self, key: str, effects: Sequence[int] | None = None) -> SiteRecord:
        """Reads one site's record.

        Args:
            effects: read those alone, in the order given, which are then the first dimension of the record.

        Raises:
            InputError: no effect covers the site, or the base has none of that key.
            FormatError: its file is corrupt.
        """
        if key not in self._sites:
            raise InputError(f"{self.path}: no record of site {key}; its keys are such as {self.keys[0]}")
        site = self._sites[key]
        count = len(self.effects)
        expected = {
            "a": (torch.float32, (count, self.rank, site.d_in)),
            "b": (torch.float32, (count, site.d_out, self.rank)),
            "mask": (torch.bool, (count,)),
            "lost": (torch.float32, (count,)),
        }
        with SafetensorsFile(f"{self.path}/{site.file}") as file:
            if {name: (spec.dtype, spec.shape) for name, spec in file.specs.items()} != expected:
                raise FormatError(f"{file.path}: does not hold what the index says; copy it again, or {AGAIN}")
            names = file.specs
            tensors = file.read_all() if effects is None else {name: file.read_rows(name, effects) for name in names}
        return SiteRecord(key, **tensors, scale_a=site.scale_a, scale_b=site.scale_b)

    def mask(self, key: str) -> Tensor:
        """Which effects cover a site, [E] bool; nothing else of its record is read."""
        with SafetensorsFile(f"{self.path}/{self._sites[key].file}") as file:
            return file.read("mask")

    def verify(self) -> None:
        """Reads every file whole and compares its digest.

        Raises:
            FormatError: a file differs from what was written.
        """
        for site in self.index.sites:
            if sha256(f"{self.path}/{site.file}") != site.sha256:
                raise FormatError(f"{self.path}/{site.file}: corrupt, its sha256 differs; copy it again, or {AGAIN}")
