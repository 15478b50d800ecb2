"""Which clips meet in which batch: within one bucket, every clip once an epoch, as a function of the seed alone.

So a run that goes on after a stop meets the same batches, and no state of a generator is kept.
"""

import random
from collections.abc import Sequence
from functools import lru_cache

import torch

from p2e.adapt.buckets import Bucket

__all__ = ["Batches", "generator_at"]


class Batches:
    """The endless sequence of batches over examples of several buckets.

    Args:
        buckets: the bucket of each example.
        size: examples a batch. Where those of a bucket do not fill the last one, some are met twice.
    """

    def __init__(self, buckets: Sequence[Bucket], size: int, seed: int) -> None:
        groups: dict[Bucket, list[int]] = {}
        for index, bucket in enumerate(buckets):
            groups.setdefault(bucket, []).append(index)
        self.groups, self.size, self.seed = list(groups.values()), size, seed
        self.per_epoch = sum(-(-len(group) // size) for group in self.groups)
        self.epoch = lru_cache(maxsize=2)(self._epoch)

    def _epoch(self, number: int) -> list[list[int]]:
        order = random.Random(f"{self.seed} {number}")
        batches = []
        for group in self.groups:
            shuffled = order.sample(group, len(group))
            count = -(-len(group) // self.size)
            filled = [shuffled[i % len(shuffled)] for i in range(count * self.size)]
            batches += [filled[i : i + self.size] for i in range(0, len(filled), self.size)]
        order.shuffle(batches)
        return batches

    def at(self, number: int) -> list[int]:
        """The examples of batch `number`, counted over the whole run."""
        return self.epoch(number // self.per_epoch)[number % self.per_epoch]


def generator_at(seed: int, number: int, device: str | torch.device) -> torch.Generator:
    """A generator of its own for batch `number`: times and noise depend on nothing drawn before."""
    mixed = random.Random(f"{seed} {number} noise").getrandbits(63)
    return torch.Generator(device).manual_seed(mixed)
