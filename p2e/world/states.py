"""Token states of the world's own prompts, kept in a file, so that a GPU machine needs no text encoder.

Padded states are zeros, so only the real tokens are stored, in float16: a thousand captions take a few megabytes.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from p2e.bases.wan import WAN_BASES
from p2e.files import SafetensorsFile, write_safetensors
from p2e.text import TextStates, encoder_for
from p2e.world.effects import EffectSpec

__all__ = ["kept_effect_states", "kept_states"]


def _unpack(packed: Tensor, lengths: Tensor, tokens: int) -> TextStates:
    mask = torch.arange(tokens) < lengths[:, None]
    states = torch.zeros(len(lengths), tokens, packed.shape[-1])
    states[mask] = packed.float()
    return TextStates(states, mask)


def kept_states(prompts: Sequence[str], folder: Path) -> TextStates:
    """Token states of `prompts` by the world's encoder: read from `folder` if they were kept there, else encoded and
    kept. The file is named by the prompts' hash, so a changed prompt is encoded anew."""
    digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]
    path = folder / f"states-{digest}.safetensors"
    if not path.exists():
        text = encoder_for(WAN_BASES["world"]).encode(prompts)
        packed, lengths = text.states[text.mask].half(), text.mask.sum(1)
        write_safetensors(path, {"states": packed, "lengths": lengths}, {"tokens": str(text.mask.shape[1])})
    with SafetensorsFile(path) as file:
        return _unpack(file.read("states"), file.read("lengths"), int(file.metadata["tokens"]))


def kept_effect_states(specs: Sequence[EffectSpec], folder: Path) -> dict[str, TextStates]:
    """Token states of the prompts of each effect, in the order of its table: training paraphrases, then unseen ones."""
    states, table, start = kept_states([prompt for spec in specs for prompt in spec.prompts], folder), {}, 0
    for spec in specs:
        table[spec.name] = states[start : start + len(spec.prompts)]
        start += len(spec.prompts)
    return table
