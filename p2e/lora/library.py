"""Libraries of LoRAs: their manifest, their check, and their preparation for training, in one place to import from."""

from p2e.lora.check import LibraryReport, check_library
from p2e.lora.manifest import Entry, Manifest, read_effect
from p2e.lora.prepare import prepare_library
from p2e.lora.prepared import Effect, PreparedLibrary, SiteRecord

__all__ = [
    "Effect",
    "Entry",
    "LibraryReport",
    "Manifest",
    "PreparedLibrary",
    "SiteRecord",
    "check_library",
    "prepare_library",
    "read_effect",
]
