"""Many LoRAs trained side by side on one frozen base: the batch is G groups, group g sees LoRA g.

Shapes: G LoRAs, n clips each, B = G n rows of a batch, L tokens, r rank, d_in and d_out of a site.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from p2e.bases.base import Base, Site
from p2e.errors import InputError
from p2e.lora.lora import Factors, Lora

__all__ = ["GroupedLinear", "GroupedLoras", "LoraForm"]


@dataclass(frozen=True, slots=True)
class LoraForm:
    """Rank of a LoRA, and what it adapts: the module types given, None for all of the base."""

    rank: int
    modules: frozenset[str] | None = None

    def covers(self, site: Site) -> bool:
        return self.modules is None or site.module in self.modules

    def cut(self, lora: Lora, base: Base) -> Lora:
        """Only what the form holds of a LoRA of its rank or more."""
        kept = {site.key: lora.factors[site.key] for site in base.sites if self.covers(site)}
        cut = {k: Factors(f.a[: self.rank].clone(), f.b[:, : self.rank].clone()) for k, f in kept.items()}
        return Lora(lora.base, cut)


class GroupedLinear(nn.Module):
    """A frozen linear layer with G updates: row block g of the batch goes through W0 + B_g A_g."""

    def __init__(self, linear: nn.Linear, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.a = nn.Parameter(a)  # [G, r, d_in]
        self.b = nn.Parameter(b)  # [G, d_out, r]

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, d_in] -> [B, L, d_out]."""
        grouped = x.reshape(self.a.shape[0], -1, x.shape[-1])
        update = torch.bmm(torch.bmm(grouped, self.a.to(x.dtype).mT), self.b.to(x.dtype).mT)
        out = self.linear(x)
        return out + update.view(out.shape).to(out.dtype)


class GroupedLoras:
    """G LoRAs over the sites of one base, as parameters [G, r, d_in] and [G, d_out, r] a site.

    Args:
        base: the base whose sites are adapted; each site must be one layer of the transformer.
        groups: G.
        rank: r.
        shared_start: all groups begin from one A; else each from its own draw. B begins at zero either way.
        init: begin from these LoRAs, one a group, of rank r or less.
        forms: rank and sites of each LoRA, where they differ; what a form leaves out stays zero.
    """

    def __init__(
        self, base: Base, groups: int, rank: int, *, seed: int = 0, device: torch.device | str = "cpu",
        shared_start: bool = False, init: Sequence[Lora] | None = None, forms: Sequence["LoraForm"] | None = None,
    ) -> None:  # fmt: skip
        for lora in init or ():
            if lora.rank > rank:
                raise InputError(f"a LoRA of rank {lora.rank} does not fit rank {rank}; raise it, or blend it down")
        self.base, self.rank, self.groups = base, rank, groups
        self.forms = list(forms) if forms is not None else [LoraForm(rank)] * groups
        generator = torch.Generator().manual_seed(seed)
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        for site in base.sites:
            count = 1 if shared_start else groups
            a = torch.randn(count, rank, site.d_in, generator=generator) / math.sqrt(site.d_in)
            a = a.expand(groups, -1, -1).clone()
            b = torch.zeros(groups, site.d_out, rank)
            for group, lora in enumerate(init or ()):
                # Components beyond the given rank keep a random A and B = 0: with both at zero no gradient would flow.
                if (given := lora.factors.get(site.key)) is not None:
                    a[group, : given.rank], b[group, :, : given.rank] = given.a, given.b
            for group, form in enumerate(self.forms):
                # Zero on both sides, so that neither ever has a gradient.
                kept = form.rank if form.covers(site) else 0
                a[group, kept:], b[group, :, kept:] = 0, 0
            self.factors[site.key] = (
                a.to(device).float().requires_grad_(True), b.to(device).float().requires_grad_(True)
            )  # fmt: skip

    @contextmanager
    def attached(self, transformer: nn.Module) -> Iterator[list[nn.Parameter]]:
        """Puts the updates into the transformer; yields the parameters to train, and takes them out at the end."""
        layers: list[tuple[nn.Module, str, nn.Linear, GroupedLinear, str]] = []
        try:
            for site in self.base.sites:
                parent_name, _, child = site.parts[0].name.rpartition(".")
                parent = transformer.get_submodule(parent_name)
                linear: Any = getattr(parent, child)
                a, b = self.factors[site.key]
                grouped = GroupedLinear(linear, a.detach(), b.detach())
                setattr(parent, child, grouped)
                layers.append((parent, child, linear, grouped, site.key))
            yield [p for layer in layers for p in (layer[3].a, layer[3].b)]
        finally:
            for parent, child, linear, grouped, key in layers:
                setattr(parent, child, linear)
                self.factors[key] = (grouped.a.detach(), grouped.b.detach())

    def lora(self, group: int) -> Lora:
        """LoRA `group` as it stands, on the CPU, in its own form."""
        whole = {key: Factors(a[group].detach().cpu(), b[group].detach().cpu()) for key, (a, b) in self.factors.items()}
        return self.forms[group].cut(Lora(self.base.name, whole), self.base)
