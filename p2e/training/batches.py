"""Which sites, effects and prompts a step trains on: a pure function of the step, so a resumed run needs no state.

Every step draws the same number of sites of each shape and the same number of effects, so that shapes never change.
Sites of a shape, and effects, each run through shuffled epochs of their own, every one of which visits all of them.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["Sampler", "share_sites"]


def share_sites(sizes: Sequence[int], total: int) -> tuple[int, ...]:
    """Shares `total` sites a step out over groups of `sizes` sites, in proportion, one to all of each group."""
    total = min(max(total, len(sizes)), sum(sizes))
    exact = [total * size / sum(sizes) for size in sizes]
    shares = [max(1, math.floor(x)) for x in exact]
    while sum(shares) != total:
        more = sum(shares) < total
        gaps = [
            (x - share if more else share - x, -i)
            for i, (x, share, size) in enumerate(zip(exact, shares, sizes, strict=True))
            if (share < size if more else share > 1)
        ]
        shares[-max(gaps)[1]] += 1 if more else -1
    return tuple(shares)


@lru_cache(maxsize=256)
def shuffled(size: int, name: str) -> tuple[int, ...]:
    order = list(range(size))
    random.Random(name).shuffle(order)
    return tuple(order)


@dataclass(frozen=True)
class Sampler:
    """Draws of every step.

    Attributes:
        sizes: number of sites of each shape.
        draws: how many of them a step takes.
        effects: indices (in the library) of the effects that are trained on.
        prompts: for each of `effects`, the first row of its prompts in the table of token states, and their number.
        effects_per_step: E; at most the number of effects.
        seed: of all orders.
        augment: rows also name, for each effect, another of its prompts and a key for random numbers.
        rank, world: this process and their number; each process of a step draws its own sites and effects.
    """

    sizes: tuple[int, ...]
    draws: tuple[int, ...]
    effects: tuple[int, ...]
    prompts: tuple[tuple[int, int], ...]
    effects_per_step: int
    seed: int = 0
    augment: bool = False
    rank: int = 0
    world: int = 1

    @property
    def widths(self) -> tuple[int, ...]:
        """Lengths of the parts of a row: sites of each shape, effects, prompts; if `augment`, other prompts, keys."""
        return (*self.draws, *[self.effects_per_step] * (4 if self.augment else 2))

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every site and every effect has been visited."""
        pairs = [*zip(self.sizes, self.draws, strict=True), (len(self.effects), self.effects_per_step)]
        return max(math.ceil(size / draw) for size, draw in pairs)

    def row(self, step: int) -> list[int]:
        """Indices of a step: sites of each shape (within their group), then effects, then one prompt of each, and
        what `augment` adds."""
        index = step * self.world + self.rank
        row: list[int] = []
        for group, (size, draw) in enumerate(zip(self.sizes, self.draws, strict=True)):
            row += self._draw(size, draw, index, f"sites {group}")
        chosen = self._draw(len(self.effects), self.effects_per_step, index, "effects")
        row += [self.effects[i] for i in chosen]
        pick = random.Random(f"{self.seed} prompts {index}")
        row += [self.prompts[i][0] + pick.randrange(self.prompts[i][1]) for i in chosen]
        if self.augment:
            pick = random.Random(f"{self.seed} augment {index}")
            row += [self.prompts[i][0] + pick.randrange(self.prompts[i][1]) for i in chosen]
            row += [pick.getrandbits(63) for _ in chosen]
        return row

    def _draw(self, size: int, draw: int, index: int, stream: str) -> list[int]:
        epoch, turn = divmod(index, math.ceil(size / draw))
        order = shuffled(size, f"{self.seed} {stream} {epoch}")
        return [order[(turn * draw + i) % size] for i in range(draw)]

    def plan(self, start: int, count: int) -> Tensor:
        """Rows of `count` steps from `start`, [count, sum(widths)] int64."""
        return torch.tensor([self.row(step) for step in range(start, start + count)], dtype=torch.int64)
