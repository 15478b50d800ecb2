"""What a base model is to p2e: an ordered table of the linear layers that a LoRA can adapt.

Words: a *site* is one adapted linear layer. Its weight W0 is [d_out, d_in].
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

__all__ = ["EXPERTS", "Base", "Family", "Part", "Shapes", "Site", "count_blocks", "head_dims"]

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor name, without a file's prefix -> shape."""

EXPERTS: Mapping[str | None, str] = {"high_noise": "transformer", "low_noise": "transformer_2"}
"""The two experts of a two-transformer model -> their folders in a diffusers checkpoint."""


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
        name: the name users type: "wan2.1-i2v-14b"; "custom" for a model that has none.
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

    @cached_property
    def lora_parameters(self) -> int:
        """Parameters of a LoRA of rank 1 on every site; times r for rank r."""
        return sum(site.d_out + site.d_in for site in self.sites)


@dataclass(frozen=True)
class Family:
    """How the bases of one transformer class are built and recognised. One a file; `registry.FAMILIES` lists them.

    Attributes:
        name: "wan".
        diffusers_class: the transformer class in diffusers.
        bases: the registered sizes, by name.
        build: (name, diffusers config, expert -> subfolder) -> the site table at the sizes of that config.
        identity: diffusers config -> the values that tell a registered size from others; settings that change
            neither shapes nor conditioning are left out.
        configs: shapes of a checkpoint -> diffusers configs that they may belong to, likeliest first (several, as
            the number of heads leaves no trace in the shapes); none, if it is not of this family.
    """

    name: str
    diffusers_class: str
    bases: Mapping[str, Base]
    build: Callable[[str, Mapping[str, Any], Mapping[str | None, str]], Base]
    identity: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    configs: Callable[[Shapes], list[dict[str, Any]]]


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """How many blocks the tensors named prefix + "N." belong to: the largest N, plus one."""
    heads = {name[len(prefix) :].partition(".")[0] for name in names if name.startswith(prefix)}
    return 1 + max((int(head) for head in heads if head.isdigit()), default=-1)


def head_dims(dim: int, preferred: int) -> list[int]:
    """Widths a head may have in a model of width `dim`, likeliest first."""
    sizes = [preferred, *(size for size in (256, 128, 64, 32, 16, 8, 4, 2, 1) if size != preferred)]
    return [size for size in sizes if dim % size == 0]
