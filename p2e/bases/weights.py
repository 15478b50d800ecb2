"""A base's weights, read a site at a time: nothing else of the checkpoint enters memory."""

import hashlib
import threading
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from p2e.bases.base import Base, Site
from p2e.bases.checkpoint import Checkpoint, find_transformers
from p2e.errors import FormatError
from p2e.files import SafetensorsFile

__all__ = ["WeightReader"]

WHOLE_HASH_BYTES = 256 << 20  # up to here every byte is hashed: about a second
SAMPLES, SAMPLE_BYTES = 4, 4096  # beyond, this many windows of a site
# Tensors that stand beside a weight which must be scaled by them before it means anything.
SCALES = ("scale_weight", "weight_scale", "weight.absmax", "weight.quant_map", "weight_scale_inv")

Slices = list[tuple[SafetensorsFile, str]]


class WeightReader:
    """Reads W0 of a base's sites from a checkpoint.

    Tensors may have original or diffusers names, with or without the prefix `model.diffusion_model.` or
    `diffusion_model.`, in one file or in shards; a site that the original fuses is stacked from its parts. All headers
    are checked at once, weights are read when asked for. Reading is safe from several threads, and the reader can be
    pickled: it opens the files again.

    Args:
        base: the site table.
        folder: path or fsspec URL, as `find_transformers` takes it.

    Raises:
        InputError: there is nothing at `folder`.
        FormatError: it holds no safetensors, or weights that are not those of `base`; the message names the first
            site at fault.
    """

    def __init__(self, base: Base, folder: str | Path) -> None:
        self.base = base
        self.folder = str(folder)
        self._lock = threading.Lock()
        self._transformers = self._find()
        self._slices = {site.key: self._locate(site, self._transformers[site.expert]) for site in base.sites}

    def _find(self) -> dict[str | None, Checkpoint]:
        transformers = find_transformers(self.folder)
        if set(transformers) != set(self.base.experts):
            raise FormatError(
                f"{self.folder}: holds {len(transformers)} transformer(s), {self.base.name} has "
                f"{len(self.base.experts)}; give the folder of that base"
            )
        return transformers

    def _locate(self, site: Site, checkpoint: Checkpoint) -> Slices:
        """The tensors that make up a site, in order of its rows, with their shapes checked."""
        tensors = checkpoint.tensors
        names = [f"{site.name}.weight"]
        rows = [site.d_out]
        if names[0] not in tensors:
            names = [f"{part.name}.weight" for part in site.parts]
            rows = [part.rows for part in site.parts]
        for name, extent in zip(names, rows, strict=True):
            if name not in tensors:
                raise FormatError(
                    f"{checkpoint.location}: has no weight for {site.key} of {self.base.name}; "
                    "incomplete, or of another base"
                )
            stem = name.removesuffix(".weight")
            if scale := next((s for s in SCALES if f"{stem}.{s}" in tensors), None):
                raise FormatError(
                    f"{checkpoint.location}: {stem} is quantised (it has a {scale}); "
                    "give the weights in bf16, fp16 or fp32"
                )
            file, raw = tensors[name]
            if file.shape(raw) != (extent, site.d_in):
                raise FormatError(
                    f"{file.path}: {raw} is {list(file.shape(raw))}, {self.base.name} has {[extent, site.d_in]} there; "
                    "quantised, or of another base"
                )
        return [tensors[name] for name in names]

    def read(self, site: Site) -> Tensor:
        """W0 of a site, [d_out, d_in], in the type it is stored in, on the CPU."""
        with self._lock:
            pieces = [file.read(raw) for file, raw in self._slices[site.key]]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def dtype(self, site: Site) -> torch.dtype:
        """The type that a site is stored in, from the header alone."""
        file, raw = self._slices[site.key][0]
        return file.specs[raw].dtype

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all sites' weights."""
        return sum(file.specs[raw].stop - file.specs[raw].start for s in self._slices.values() for file, raw in s)

    @cached_property
    def hash(self) -> str:
        """Hex digest (SHA-256) of the sites' weights: their keys, shapes, stored types and values.

        Names, shards, prefixes and fusion do not enter, so the same weights in diffusers and in original files have
        the same hash. Up to 256 MiB in all, every byte is hashed. Beyond that four windows of 4 KiB a site are,
        spread evenly from its first byte to its last: that tells fine-tunes and other bases apart, as training moves
        all weights, but would not notice a change made to a few rows on purpose. Layers that are not sites, biases
        and norms do not enter at all.
        """
        digest = hashlib.sha256(b"p2e-base-1")
        whole = self.nbytes <= WHOLE_HASH_BYTES
        for site in self.base.sites:
            slices = self._slices[site.key]
            digest.update(f"{site.key} {site.d_out} {site.d_in} {self.dtype(site)} {whole}\n".encode())
            size = sum(file.specs[raw].stop - file.specs[raw].start for file, raw in slices)
            if whole or size <= SAMPLES * SAMPLE_BYTES:
                digest.update(self._bytes(slices, 0, size))
                continue
            for index in range(SAMPLES):
                start = index * (size - SAMPLE_BYTES) // (SAMPLES - 1)
                digest.update(self._bytes(slices, start, start + SAMPLE_BYTES))
        return digest.hexdigest()

    def _bytes(self, slices: Slices, start: int, stop: int) -> bytes:
        """Bytes start to stop of a site's weight, row by row, across the tensors that it is stored in."""
        pieces: list[bytes] = []
        with self._lock:
            for file, raw in slices:
                size = file.specs[raw].stop - file.specs[raw].start
                if start < size and stop > 0:
                    pieces.append(file.read_bytes(raw, max(start, 0), min(stop, size)))
                start, stop = start - size, stop - size
        return b"".join(pieces)

    def close(self) -> None:
        for checkpoint in self._transformers.values():
            checkpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Self], tuple[Base, str]]:
        return type(self), (self.base, self.folder)
