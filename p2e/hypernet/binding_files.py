"""A binding on disk, under a name that its checkpoint, base and number type give it:

FOLDER/NAME/000.safetensors ...   a piece: latents, queries, b, a; its sites in the header
FOLDER/NAME/index.json            written last; a folder without it is one that was cut off
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from p2e.bases import WeightReader
from p2e.bases.base import Site
from p2e.errors import FormatError, InputError
from p2e.files import SafetensorsFile, read_text, write_safetensors, write_text
from p2e.hypernet.checkpoint import Checkpoint
from p2e.hypernet.model import Bound

__all__ = ["BindingFiles", "binding_name"]

FORMAT, INDEX = "p2e-binding-2", "index.json"


def binding_name(checkpoint: Checkpoint, weights: WeightReader) -> str:
    """Of the checkpoint's and the base's digests and the type of the numbers."""
    parts = [FORMAT, checkpoint.hash, weights.hash, str(checkpoint.dtype)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


class BindingFiles:
    """The folder of one binding.

    Args:
        folder: of all bindings.
    """

    def __init__(self, folder: str | Path, checkpoint: Checkpoint, weights: WeightReader) -> None:
        self.checkpoint = checkpoint
        self.folder = Path(folder) / binding_name(checkpoint, weights)
        self._written = 0

    @property
    def whole(self) -> bool:
        return (self.folder / INDEX).is_file()

    def write(self, index: int, sites: Sequence[Site], bound: Bound) -> None:
        """One piece.

        Raises:
            OutputError: it cannot be written.
        """
        tensors = {name: value.contiguous() for name, value in bound._asdict().items()}
        keys = json.dumps([site.key for site in sites])
        write_safetensors(self.path(index), tensors, {"format": FORMAT, "sites": keys})
        self._written = index + 1

    def finish(self) -> None:
        write_text(self.folder / INDEX, json.dumps({"format": FORMAT, "pieces": self._written}) + "\n")

    def path(self, index: int) -> Path:
        return self.folder / f"{index:03d}.safetensors"

    def read(self) -> Iterator[tuple[tuple[Site, ...], Bound]]:
        """Sites and what is known of them, piece by piece, on the CPU.

        Raises:
            FormatError: a piece is missing, damaged, or does not hold what the checkpoint asks for.
        """
        again = f"remove {self.folder} and bind again"
        try:
            pieces = int(json.loads(read_text(self.folder / INDEX))["pieces"])
            known = set(self.checkpoint.scales)
            for index in range(pieces):
                sites, bound = self._piece(index)
                known -= {site.key for site in sites}
                yield sites, bound
        except (ValueError, KeyError, TypeError, InputError) as error:
            raise FormatError(f"{self.folder}: a damaged binding ({error}); {again}") from None
        if known:
            raise FormatError(f"{self.folder}: a binding without {len(known)} of the sites; {again}")

    def _piece(self, index: int) -> tuple[tuple[Site, ...], Bound]:
        with SafetensorsFile(self.path(index)) as file:
            sites = tuple(self.checkpoint.base.by_key[key] for key in json.loads(file.metadata["sites"]))
            first, config = sites[0], self.checkpoint.config
            tokens, count = first.d_out + first.d_in, len(sites)
            expected = {
                "latents": (count, config.latents, config.width),
                "queries": (count, tokens, config.width),
                "b": (count, first.d_out, config.rank), "a": (count, first.d_in, config.rank),
            }  # fmt: skip
            if {n: (s.dtype, s.shape) for n, s in file.specs.items()} != {
                name: (self.checkpoint.dtype, shape) for name, shape in expected.items()
            }:
                raise ValueError(f"{self.path(index).name} does not hold what its sites ask for")
            return sites, Bound(**file.read_all())
