"""p2e: from the words for a visual effect to LoRA weights for an image-to-video model."""

__version__ = "0.1.0"
