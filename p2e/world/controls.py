"""Controls that a prediction must beat: LoRAs that need no hypernetwork.

The mean of the training LoRAs says what all effects share (mostly: hold still until told otherwise); the LoRA of the
training effect with the nearest prompt says what looking up would give.
"""

from collections.abc import Mapping, Sequence

import torch

from p2e.hypernet.text import sentence_vectors
from p2e.lora.compose import blend
from p2e.lora.lora import Lora
from p2e.text import TextStates

__all__ = ["mean_lora", "nearest_effects"]


def mean_lora(loras: Sequence[Lora], rank: int) -> Lora:
    """The mean of the updates, cut to `rank` by its singular values."""
    return blend([(lora, 1 / len(loras)) for lora in loras], rank).lora


def nearest_effects(
    wanted: TextStates, library: Mapping[str, TextStates], exclude: Sequence[str | None] | None = None
) -> list[str]:
    """For each prompt of `wanted`, the effect of `library` that has the nearest prompt.

    Args:
        library: effect -> its training paraphrases.
        exclude: for each prompt an effect that may not be chosen, or None.
    """
    names = [name for name, text in library.items() for _ in range(len(text.mask))]
    vectors = torch.cat([sentence_vectors(text) for text in library.values()])
    similarity = sentence_vectors(wanted) @ vectors.T
    if exclude is not None:
        for row, name in enumerate(exclude):
            if name is not None:
                similarity[row, [i for i, other in enumerate(names) if other == name]] = -2
    return [names[i] for i in similarity.argmax(1).tolist()]
