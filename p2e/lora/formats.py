"""LoRA files, both ways: every family that is read, and the three that are written."""

from p2e.lora.detect import detect_lora_base
from p2e.lora.read import read_lora
from p2e.lora.write import LoraFormat, write_lora

__all__ = ["LoraFormat", "detect_lora_base", "read_lora", "write_lora"]
