"""One LoRA slot on a base's transformers: unfused, swapped in place, gone without a trace.

Every adapted linear layer gets a `SiteSlot` child with fixed buffers of `max_rank`, and one forward hook that adds its
update: y = W0 x + b + s (B (A x) + db). W0 is never written, so removing or clearing the slot gives the base back bit
for bit; in bfloat16 a fused update would be rounded away in part. A swap copies into the buffers and pads with zeros:
no tensor changes shape or address, so neither torch.compile's guards nor CUDA graphs see it.

Why not PEFT's hot swap: it refuses to exchange adapters of mixed and of uniform ranks, needs an adapter that covers all
sites first, replaces its scaling tensor by a number when the strength is set, and knows neither fused sites nor mixes.
A hook, unlike a replacing module, leaves classes and parameter names alone, so that quantised layers, offloading and
diffusers' own loaders work on the same transformer.

Shapes: r rank of the LoRA, R max_rank, d_in and d_out of one diffusers layer.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p2e.bases.base import Base, Site
from p2e.errors import InputError
from p2e.lora.lora import Factors, Lora

__all__ = ["LoraSlot", "SiteSlot", "SlotReport"]

CHILD = "lora_slot"


@dataclass(frozen=True, slots=True)
class SlotReport:
    """What a load put into the slot: sites adapted, the largest rank, and how many sites got a bias update."""

    sites: int
    rank: int
    biases: int


class SiteSlot(nn.Module):
    """The buffers of one diffusers layer: A [R, d_in], B [d_out, R], bias [d_out] and the strength, a scalar tensor."""

    a: Tensor
    b: Tensor
    bias: Tensor
    strength: Tensor

    def __init__(self, d_in: int, d_out: int, max_rank: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        shapes = {"a": (max_rank, d_in), "b": (d_out, max_rank), "bias": (d_out,), "strength": ()}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, device=device, dtype=dtype), persistent=False)
        self.rank, self.has_bias = 0, False

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """y plus the update of x."""
        if torch.compiler.is_compiling():
            # The whole buffers always: reading `rank` here would be a guard, and every swap a recompilation.
            a, b = self.a, self.b
        elif self.rank == 0:
            return y
        else:
            a, b = self.a[: self.rank], self.b[:, : self.rank]
        hidden = F.linear(x.to(a.dtype), a) * self.strength
        return y + F.linear(hidden, b, self.bias * self.strength).to(y.dtype)

    def views(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Ranks start to stop of A and B."""
        return self.a[start:stop], self.b[:, start:stop]


def _add_update(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return layer.get_submodule(CHILD)(args[0], output)


class _Swap:
    """What a swap writes, gathered over all sites, so that a GPU does it in a few launches and not in thousands."""

    def __init__(self) -> None:
        self.weighted: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
        self.cleared: list[Tensor] = []

    def fill(
        self,
        slot: SiteSlot,
        found: Sequence[tuple[Factors, float]],
        deltas: Sequence[tuple[Tensor, float]],
        rows: slice,
    ) -> None:
        """One slot: factors side by side, zeros behind them up to where the last swap wrote."""
        end = 0
        for factors, weight in found:
            start, end = end, end + factors.rank
            a, b = slot.views(start, end)
            self.copy(a, factors.a)
            self.copy(b, factors.b[rows], weight)
        if slot.rank > end:
            self.cleared += slot.views(end, slot.rank)
        if deltas:
            total = sum(delta[rows].to(slot.bias.device, torch.float32) * weight for delta, weight in deltas)
            assert isinstance(total, Tensor)
            self.copy(slot.bias, total)
        elif slot.has_bias:
            self.cleared.append(slot.bias)
        slot.rank, slot.has_bias = max(end, int(bool(deltas))), bool(deltas)

    def copy(self, target: Tensor, source: Tensor, weight: float = 1.0) -> None:
        targets, sources = self.weighted.setdefault(weight, ([], []))
        targets.append(target)
        if weight != 1.0:  # multiplied in the wider type, so that a weighted factor is rounded once
            source = source.to(target.device, torch.promote_types(source.dtype, target.dtype))
        sources.append(source)

    def run(self) -> None:
        for weight, (targets, sources) in self.weighted.items():
            scaled = sources if weight == 1.0 else torch._foreach_mul(sources, weight)
            torch._foreach_copy_(targets, scaled, non_blocking=True)
        if self.cleared:
            torch._foreach_zero_(self.cleared)


class LoraSlot:
    """The slot over all sites of a base.

    Install it before torch.compile. One slot at a time stands on a transformer.

    Args:
        transformer: the diffusers transformer, or expert -> transformer for a base with several.
        base: the site table.
        max_rank: R, the largest rank that fits; memory is R (d_in + d_out) entries a site.

    Raises:
        InputError: the transformer is not one of `base`, or already has a slot.
    """

    def __init__(self, transformer: nn.Module | Mapping[Any, nn.Module], base: Base, max_rank: int) -> None:
        if max_rank < 1:
            raise InputError(f"a LoRA slot needs a max_rank of 1 or more, not {max_rank}")
        self.base = base
        self.max_rank = max_rank
        self.loaded: tuple[tuple[Lora, float], ...] = ()
        self.strength = 1.0
        experts = transformer if isinstance(transformer, Mapping) else {base.experts[0]: transformer}
        layers = {
            (site.key, part.name): self._layer(experts, site, part.name, part.rows)
            for site in base.sites
            for part in site.parts
        }
        self._slots: dict[tuple[str, str], SiteSlot] = {}
        self._layers = list(layers.values())
        self._hooks = []
        for key, layer in layers.items():
            weight = layer.weight
            assert isinstance(weight, Tensor)
            dtype = weight.dtype if weight.dtype.is_floating_point and weight.dtype.itemsize > 1 else torch.bfloat16
            site = base.by_key[key[0]]
            rows = next(part.rows for part in site.parts if part.name == key[1])
            slot = SiteSlot(site.d_in, rows, max_rank, weight.device, dtype)
            layer.add_module(CHILD, slot)
            self._slots[key] = slot
            self._hooks.append(layer.register_forward_hook(_add_update))

    def _layer(self, experts: Mapping[Any, nn.Module], site: Site, name: str, rows: int) -> nn.Module:
        if site.expert not in experts:
            raise InputError(
                f"{self.base.name} has the transformers {list(self.base.experts)}; {site.expert} is missing"
            )
        try:
            layer = experts[site.expert].get_submodule(name)
        except AttributeError:
            raise InputError(f"the transformer has no layer {name}; is it {self.base.name}?") from None
        shape = (getattr(layer, "out_features", None), getattr(layer, "in_features", None))
        if shape != (rows, site.d_in):
            raise InputError(
                f"{name} is {list(shape)}, {self.base.name} has [{rows}, {site.d_in}]; is it another base?"
            )
        if hasattr(layer, CHILD):
            raise InputError(f"{name} already has a LoRA slot; remove() the first one")
        return layer

    def _sites(self) -> Iterator[tuple[Site, list[tuple[int, int, SiteSlot]]]]:
        """Each site with (first row, end row, slot) of its parts."""
        for site in self.base.sites:
            row, parts = 0, []
            for part in site.parts:
                parts.append((row, row + part.rows, self._slots[site.key, part.name]))
                row += part.rows
            yield site, parts

    def load(self, lora: Lora, strength: float = 1.0) -> SlotReport:
        """Puts one LoRA in, in place of whatever was there.

        Raises:
            InputError: it is for another base, its rank is above max_rank, or its shapes do not fit. The slot is then
                left as it was.
        """
        return self.load_mixed([(lora, 1.0)], strength)

    @torch.no_grad()
    def load_mixed(self, loras: Sequence[tuple[Lora, float]], strength: float = 1.0) -> SlotReport:
        """Puts the weighted sum of several LoRAs in, exactly: the ranks add up, so they must fit in max_rank together.

        Raises:
            InputError: as in `load`.
        """
        self._check(loras)
        self._check_strength(strength)
        swap = _Swap()
        sites = biases = rank = 0
        for site, parts in self._sites():
            found = [(lora.factors[site.key], weight) for lora, weight in loras if site.key in lora.factors]
            deltas = [(lora.biases[site.key], weight) for lora, weight in loras if site.key in lora.biases]
            for start, stop, slot in parts:
                swap.fill(slot, found, deltas, slice(start, stop))
            total = sum(factors.rank for factors, _ in found)
            sites, rank, biases = sites + bool(found or deltas), max(rank, total), biases + bool(deltas)
        swap.run()
        self.loaded = tuple(loras)
        self.set_strength(strength)
        return SlotReport(sites, rank, biases)

    def _check(self, loras: Sequence[tuple[Lora, float]]) -> None:
        ranks: dict[str, int] = {}
        for lora, _ in loras:
            source = lora.provenance.source or "the LoRA"
            if lora.base != self.base.name:
                raise InputError(f"{source}: made for {lora.base}, not for {self.base.name}; use one of this base")
            if not lora.factors and not lora.biases:
                raise InputError(f"{source}: adapts no site of {self.base.name}; check that it is for this base")
            for key, (a, b) in lora.factors.items():
                site = self.base.by_key.get(key)
                if site is None:
                    raise InputError(f"{source}: {key} is no site of {self.base.name}; use a LoRA of this base")
                if (a.shape[1], b.shape[0], b.shape[1]) != (site.d_in, site.d_out, a.shape[0]):
                    raise InputError(
                        f"{source}: {key} has A {list(a.shape)} and B {list(b.shape)} for a layer of "
                        f"[{site.d_out}, {site.d_in}]; use a LoRA of this base"
                    )
                ranks[key] = ranks.get(key, 0) + a.shape[0]
            for key, bias in lora.biases.items():
                if key not in self.base.by_key or bias.shape != (self.base.by_key[key].d_out,):
                    raise InputError(
                        f"{source}: the bias of {key} does not fit {self.base.name}; use a LoRA of this base"
                    )
        rank = max(ranks.values(), default=0)
        if rank > self.max_rank:
            raise InputError(
                f"rank {rank} does not fit the LoRA slot of rank {self.max_rank}; "
                f"open it with max_rank {rank}, or truncate the LoRA with `p2e lora blend --rank {self.max_rank}`"
            )

    @staticmethod
    def _check_strength(strength: float) -> None:
        if not math.isfinite(strength):
            raise InputError(f"a strength of {strength} cannot be used; give a number such as 1.0")

    @torch.no_grad()
    def set_strength(self, strength: float) -> None:
        """Scales the update; 0 gives the base's output, 1 the LoRA as it is. Nothing is reloaded."""
        self._check_strength(strength)
        self.strength = strength
        torch._foreach_zero_(strengths := [slot.strength for slot in self._slots.values()])
        torch._foreach_add_(strengths, strength)

    @torch.no_grad()
    def clear(self) -> None:
        """Empties the slot: the transformer gives the base's output again, bit for bit."""
        swap = _Swap()
        for slot in self._slots.values():
            swap.fill(slot, [], [], slice(None))
        swap.run()
        self.loaded = ()

    def remove(self) -> None:
        """Takes the slot off the transformer."""
        for hook in self._hooks:
            hook.remove()
        for layer in self._layers:
            delattr(layer, CHILD)
        self._hooks, self._layers, self._slots = [], [], {}
        self.loaded = ()
