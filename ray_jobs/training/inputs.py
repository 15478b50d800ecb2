"""What a run reads, opened in any process of the cluster."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ray
import ray.train.collective
import torch

from p2e.bases import WeightReader, open_base
from p2e.bases.base import Base
from p2e.config import TrainConfig
from p2e.errors import InputError
from p2e.lora.prepared import PreparedLibrary
from p2e.text import TextEncoder, TextStates, encoder_for

__all__ = ["Inputs", "SharedEncoder", "open_inputs"]


class Inputs(NamedTuple):
    """A base with what reads its weights, a prepared library, and what loads the base's text encoder."""

    base: Base
    weights: WeightReader
    library: PreparedLibrary
    encoder: Callable[[], TextEncoder]


def open_inputs(config: TrainConfig) -> Inputs:
    """Opens what a configuration names; no weight and no target is read yet.

    Raises:
        InputError: base or library cannot be read.
    """
    base, weights = open_base(config.base)
    if weights is None:
        raise InputError(f"{config.base}: training reads the base's weights; set base: to the folder that holds them")
    return Inputs(base, weights, PreparedLibrary.open(config.library), lambda: encoder_for(base, weights.folder))


class SharedEncoder:
    """Encodes prompts on the first worker alone, for all: a text encoder may be larger than the hypernetwork.

    Args:
        width: of the token states.
        rank: of this worker.
    """

    def __init__(self, load: Callable[[], TextEncoder], width: int, rank: int) -> None:
        self._load, self.width, self._rank = load, width, rank

    def encode(self, prompts: Sequence[str]) -> TextStates:
        reference: Any = None
        if self._rank == 0:
            states = self._load().encode(prompts)
            reference = ray.put((states.states.numpy(), states.mask.numpy()))
        # Through the object store: the channel between workers is for small messages.
        self._reference = ray.train.collective.broadcast_from_rank_zero([reference])[0]
        states, mask = ray.get(self._reference)
        return TextStates(torch.from_numpy(states.copy()), torch.from_numpy(mask.copy()))
