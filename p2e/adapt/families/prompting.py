"""Text through a base's own pipeline, for the families whose prompts need more than one encoder's states."""

from pathlib import Path
from typing import Any

import torch

from p2e.errors import FormatError

__all__ = ["text_pipeline"]


def text_pipeline(name: str, folder: Path, dtype: torch.dtype, device: str | torch.device) -> Any:
    """The diffusers pipeline `name` of a folder without transformer and autoencoder; only encode_prompt can be used.

    Length, masks and padding then are what the transformer meets when the pipeline renders.

    Raises:
        FormatError: its encoders cannot be read.
    """
    import diffusers

    try:
        pipe = getattr(diffusers, name).from_pretrained(
            folder, transformer=None, vae=None, dtype=dtype, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise FormatError(
            f"{folder}: its text encoder cannot be read ({cause[:160]}); save the pipeline again"
        ) from None
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    return pipe.to(device)
