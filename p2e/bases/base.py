"""What a base model is to p2e: an ordered table of the linear layers that a LoRA can adapt.

Words: a *site* is one adapted linear layer. Its weight W0 is [d_out, d_in].
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

__all__ = ["Base", "Part", "Site"]


@dataclass(frozen=True, slots=True)
class Part:
    """A linear layer of the diffusers class that holds `rows` consecutive rows of a site's weight."""

    name: str
    rows: int


@dataclass(frozen=True, slots=True)
class Site:
    """One adapted linear layer of a base.

    Attributes:
        index: position in the base's table.
        block: which transformer block, counted over the whole base.
        module: module type, in original names and without the block: "self_attn.q".
        d_out, d_in: the shape of W0.
        name: original name of the layer: "blocks.3.self_attn.q".
        parts: the diffusers layers that make up its rows, in order; one, unless the original fuses several.
        expert: which of several transformers it belongs to ("high_noise", "low_noise"), None where there is one.
    """

    index: int
    block: int
    module: str
    d_out: int
    d_in: int
    name: str
    parts: tuple[Part, ...]
    expert: str | None = None

    @property
    def key(self) -> str:
        """The site's unique name in its base: the original name, behind the expert's where there are several."""
        return f"{self.expert}.{self.name}" if self.expert else self.name


@dataclass(frozen=True)
class Base:
    """A base model's site table and what the rest of p2e must know of it.

    Attributes:
        name: the name users type: "wan2.1-i2v-14b".
        family: "wan", "ltx", "hunyuan", "cogvideox".
        sites: all sites, ordered by expert, block and module.
        diffusers_class: name of the transformer class in diffusers.
        diffusers_config: arguments of that class at this size.
        subfolders: the folder of each expert's weights within a diffusers checkpoint; the key None where there is one.
        text_dim: width of the text encoder's token states.
    """

    name: str
    family: str
    sites: tuple[Site, ...]
    diffusers_class: str
    diffusers_config: Mapping[str, Any]
    subfolders: Mapping[str | None, str] = field(default_factory=lambda: {None: "transformer"})
    text_dim: int = 4096

    @property
    def experts(self) -> tuple[str | None, ...]:
        return tuple(self.subfolders)

    @cached_property
    def by_key(self) -> dict[str, Site]:
        return {site.key: site for site in self.sites}

    @cached_property
    def by_part(self) -> dict[tuple[str | None, str], tuple[Site, int]]:
        """(expert, diffusers name) -> (site, first row of that part in the site)."""
        table: dict[tuple[str | None, str], tuple[Site, int]] = {}
        for site in self.sites:
            row = 0
            for part in site.parts:
                table[site.expert, part.name] = (site, row)
                row += part.rows
        return table

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The module types, in order of first appearance; a site's module id is its index here."""
        return tuple(dict.fromkeys(site.module for site in self.sites))

    @cached_property
    def num_blocks(self) -> int:
        return 1 + max(site.block for site in self.sites)

    @cached_property
    def shapes(self) -> dict[tuple[int, int], list[Site]]:
        """Sites by (d_out, d_in)."""
        groups: dict[tuple[int, int], list[Site]] = {}
        for site in self.sites:
            groups.setdefault((site.d_out, site.d_in), []).append(site)
        return groups
