"""Token states of prompts, each encoded once."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

from p2e.errors import InputError
from p2e.text import TextEncoder, TextStates

__all__ = ["PromptCache"]


class PromptCache:
    """The states of the prompts used last.

    Args:
        make_encoder: called at the first prompt, for a large encoder takes a while to load.
        size: prompts that are kept.
    """

    def __init__(self, make_encoder: Callable[[], TextEncoder], size: int = 1024) -> None:
        self._make_encoder = make_encoder
        self._encoder: TextEncoder | None = None
        self._size = size
        self._states: OrderedDict[str, TextStates] = OrderedDict()

    @property
    def width(self) -> int:
        """D of the states."""
        return self._opened().width

    def _opened(self) -> TextEncoder:
        self._encoder = self._encoder or self._make_encoder()
        return self._encoder

    def encode(self, prompts: Sequence[str]) -> TextStates:
        """Token states [N, T, D] of N prompts.

        Raises:
            InputError: a prompt is empty or too long, or the encoder cannot be had.
        """
        if isinstance(prompts, str) or not prompts:
            raise InputError("encode takes a list of prompts; put the prompt in a list")
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._states]
        if missing:
            encoded = self._opened().encode(missing)
            for index, prompt in enumerate(missing):
                self._states[prompt] = encoded[index]
        found = [self._states[prompt] for prompt in prompts]
        for prompt in prompts:
            self._states.move_to_end(prompt)
        while len(self._states) > self._size:
            self._states.popitem(last=False)
        return TextStates(torch.stack([each.states for each in found]), torch.stack([each.mask for each in found]))
