"""Controls that a prediction must beat: LoRAs that need no hypernetwork.

The mean of the training LoRAs says what all effects share (mostly: hold still until told otherwise); the LoRA of the
training effect with the nearest prompt says what looking up would give, and the mean weighed by a softmax of the
prompt's similarity to each training effect what mixing by text would.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from p2e.hypernet.text import sentence_vectors
from p2e.lora.compose import blend
from p2e.lora.lora import Lora
from p2e.text import TextStates

__all__ = ["mean_lora", "nearest_effects", "softmax_weights", "weighed_lora"]

NEGLIGIBLE = 0.01  # of the largest weight: a sum of a hundred updates is slow to factorise, and these hardly show


def mean_lora(loras: Sequence[Lora], rank: int) -> Lora:
    """The mean of the updates, cut to `rank` by its singular values."""
    return weighed_lora(loras, [1 / len(loras)] * len(loras), rank)


def weighed_lora(loras: Sequence[Lora], weights: Sequence[float], rank: int) -> Lora:
    """The weighed sum of the updates, cut to `rank` by its singular values; some weight must not be zero."""
    return blend([(lora, weight) for lora, weight in zip(loras, weights, strict=True) if weight], rank).lora


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


def softmax_weights(wanted: TextStates, library: Mapping[str, TextStates], temperature: float) -> Tensor:
    """Weights of the library's effects for each prompt of `wanted`, [N, F]: softmax(cosine / temperature) between the
    prompt and the centre of the effect's paraphrases, once the mean over the library's prompts is taken from both.
    Weights below a hundredth of the largest are 0, and the rest sum to 1.

    Args:
        library: effect -> its training paraphrases.
    """
    vectors = [sentence_vectors(text) for text in library.values()]
    mean = torch.cat(vectors).mean(0)
    centres = torch.stack([F.normalize(v - mean, dim=-1).mean(0) for v in vectors])
    similarity = F.normalize(sentence_vectors(wanted) - mean, dim=-1) @ F.normalize(centres, dim=-1).T
    weights = torch.softmax(similarity / temperature, dim=1)
    return F.normalize(weights * (weights >= NEGLIGIBLE * weights.amax(1, keepdim=True)), p=1, dim=1)
