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
    """A frozen linear layer with G updates: row block g of the batch goes through W0 + B_g A_g.

    Args:
        linear: the layer.
        a: [G, r, d_in]; where a site has several layers, all of them share it.
        b: [G, d_out, r], the rows of this layer.
    """

    def __init__(self, linear: nn.Linear, a: nn.Parameter, b: nn.Parameter) -> None:
        super().__init__()
        self.linear = linear
        self.a = a
        self.b = b

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, d_in] -> [B, L, d_out]."""
        grouped = x.reshape(self.a.shape[0], -1, x.shape[-1])
        update = torch.bmm(torch.bmm(grouped, self.a.to(x.dtype).mT), self.b.to(x.dtype).mT)
        out = self.linear(x)
        return out + update.view(out.shape).to(out.dtype)


class GroupedLoras:
    """G LoRAs over the sites of one base, as parameters [G, r, d_in] and [G, d_out, r] a site.

    Args:
        base: the base whose sites are adapted (`p2e.adapt.sites.narrowed` leaves some out); one of several transformers
            takes a base of its sites alone. A site that the original fuses is one A over the layers of its parts.
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
        layers: list[tuple[nn.Module, str, nn.Linear]] = []
        trained: dict[str, tuple[nn.Parameter, list[nn.Parameter]]] = {}
        try:
            for site in self.base.sites:
                a, b = self.factors[site.key]
                rows = [part.rows for part in site.parts]
                # One part is the rule, and keeps its B as it is; several get their rows as parameters of their own.
                split = [b.detach()] if len(rows) == 1 else [x.clone() for x in b.detach().split(rows, dim=1)]
                trained[site.key] = nn.Parameter(a.detach()), [nn.Parameter(x) for x in split]
                for part, own in zip(site.parts, trained[site.key][1], strict=True):
                    parent_name, _, child = part.name.rpartition(".")
                    parent = transformer.get_submodule(parent_name)
                    linear: Any = getattr(parent, child)
                    setattr(parent, child, GroupedLinear(linear, trained[site.key][0], own))
                    layers.append((parent, child, linear))
            yield [p for a, parts in trained.values() for p in (a, *parts)]
        finally:
            for parent, child, linear in layers:
                setattr(parent, child, linear)
            for key, (a, parts) in trained.items():
                b = parts[0].detach() if len(parts) == 1 else torch.cat([x.detach() for x in parts], dim=1)
                self.factors[key] = a.detach(), b

    def lora(self, group: int) -> Lora:
        """LoRA `group` as it stands, on the CPU, in its own form."""
        whole = {key: Factors(a[group].detach().cpu(), b[group].detach().cpu()) for key, (a, b) in self.factors.items()}
        return self.forms[group].cut(Lora(self.base.name, whole), self.base)
