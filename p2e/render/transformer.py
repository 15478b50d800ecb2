"""What makes a diffusers transformer faster than it comes: attention's backend, float8, compiled blocks."""

from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

from p2e.errors import InputError
from p2e.float8 import check_float8, use_float8

__all__ = ["use_attention", "use_float8_blocks"]


def use_attention(transformer: Any, backend: str) -> None:
    """Sets the backend of a diffusers transformer's attention, and of no other's: diffusers itself also makes it that
    of all models which have none of their own.

    Raises:
        InputError: diffusers knows no such backend, or it cannot be used here.
    """
    try:
        with attention_backend(AttentionBackendName.NATIVE):  # puts back what was set before
            transformer.set_attention_backend(backend)
    except (ValueError, RuntimeError, ImportError) as error:
        cause = " ".join(str(error).split())[:160]
        raise InputError(f"attention backend {backend!r} cannot be used ({cause}); leave it out") from None


def use_float8_blocks(transformer: Any, device: torch.device) -> None:
    """Rounds the linear layers of a transformer's blocks to float8, block by block on the device: it never holds more
    than one block's weights in their own type. What stands around the blocks stays as it is, where it is.

    Raises:
        InputError: the device has no products in float8.
    """
    check_float8(device)
    for block in transformer.blocks:
        use_float8(block.to(device))
