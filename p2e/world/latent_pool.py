"""A pool of encoded clips that renews itself while a model trains on it.

Drawing and encoding a clip costs as much as several training steps on it, so clips are used more than once; but a pool
that never changes is learned by heart. Block number b is a function of the seed and b alone, so a resumed run finds
the pool as it was.

Shapes: P clips, Z channels, f + 1 latent frames, h x w latent cells.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["BLOCK", "LatentPool"]

BLOCK = 2048  # clips drawn and encoded together

# generator, count -> latents, condition, caption index of so many clips
Draw = Callable[[torch.Generator, int], tuple[Tensor, Tensor, Tensor]]


class LatentPool:
    """The blocks in use: block b stands in slot b modulo their number.

    Args:
        draw: makes a block.
        clips: size of the pool, rounded up to whole blocks; less than a block is one smaller block.
        renewed: blocks that were renewed before, by the run that is resumed.
        seed: of this worker's blocks.

    Attributes:
        latents, condition: [P, Z, f + 1, h, w]; caption: [P].
    """

    def __init__(self, draw: Draw, clips: int, device: torch.device, *, seed: int, renewed: int = 0) -> None:
        self.draw, self.device, self.seed = draw, device, seed
        self.size = min(BLOCK, clips)
        self.blocks = -(-clips // self.size)
        self.renewed = renewed
        parts = {}
        for number in range(renewed, renewed + self.blocks):
            parts[number % self.blocks] = self._block(number)
        columns = zip(*(parts[slot] for slot in range(self.blocks)), strict=True)
        self.latents, self.condition, self.caption = map(torch.cat, columns)

    def __len__(self) -> int:
        return len(self.latents)

    def _block(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator(self.device).manual_seed(self.seed + 7919 * number)
        return self.draw(generator, self.size)

    def renew(self) -> None:
        """Replaces the oldest block."""
        number = self.blocks + self.renewed
        slot = number % self.blocks
        rows = slice(slot * self.size, (slot + 1) * self.size)
        self.latents[rows], self.condition[rows], self.caption[rows] = self._block(number)
        self.renewed += 1
