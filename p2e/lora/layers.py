"""A LoRA file opened and sorted by layer, before any base is known; the data itself is still on disk."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from p2e.errors import FormatError
from p2e.files import SafetensorsFile
from p2e.lora.keys import Key, Role, parse_key, refusal, shown

__all__ = ["BASE_KEY", "EXPERT_KEY", "ZERO_KEY", "FiniteCheck", "Layer", "LoraFile", "all_finite"]

Name = TypeVar("Name")

# Header entries that p2e writes and understands; every other reader passes over them.
BASE_KEY = "p2e.base"  # name of the base
EXPERT_KEY = "p2e.expert"  # which transformer of a two-expert base the file is for
ZERO_KEY = "p2e.zero_filled"  # JSON list of sites that are not covered, stored as zeros because a reader wants them

_FOLDER_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")  # of PEFT, of diffusers


@dataclass(frozen=True)
class Layer:
    """All that a file says of one layer.

    Attributes:
        name: the layer's name, without prefix; dots may be underscores.
        expert: 0 or 1 where the keys name the transformer of a two-expert model.
        keys: role -> key.
        shape: (d_out, d_in) by the factors' shapes, None where there is no pair.
    """

    name: str
    expert: int | None
    keys: Mapping[Role, Key]
    shape: tuple[int, int] | None

    @property
    def is_pair(self) -> bool:
        return "a" in self.keys or "b" in self.keys


class LoraFile:
    """A safetensors file that holds a LoRA of any family.

    Args:
        path: a file, local or fsspec, or a local folder as PEFT or diffusers save it.

    Attributes:
        source: the file's path.
        metadata: its header.
        layers: what it says, by layer, in the file's order.
        others: keys that belong to no LoRA layer.

    Raises:
        FormatError: the file is corrupt, holds no LoRA factors, or holds an update of another kind than B A.
    """

    def __init__(self, path: str | Path) -> None:
        self.source = _locate(path)
        self._file = SafetensorsFile(self.source)
        try:
            self.metadata = self._file.metadata
            self._sort()
        except BaseException:
            self._file.close()
            raise

    def _sort(self) -> None:
        names = self._file.keys()
        if refused := refusal(names):
            key, kind = refused
            raise FormatError(
                f"{self.source}: {shown(key)} is {kind}, which is not a product of two factors; "
                "train it as a plain LoRA, or extract one from the merged weights"
            )
        self.others: list[Key] = []
        sorted_keys: dict[tuple[int | None, str], dict[Role, Key]] = {}
        for key in map(parse_key, names):
            if key.role == "other":
                self.others.append(key)
                continue
            group = sorted_keys.setdefault((key.expert, key.layer), {})
            if key.role in group:
                raise FormatError(
                    f"{self.source}: {shown(group[key.role].text)} and {shown(key.text)} are two LoRAs of one layer; "
                    "save each adapter to a file of its own"
                )
            group[key.role] = key
        self.layers = [Layer(name, expert, keys, self._shape(keys)) for (expert, name), keys in sorted_keys.items()]
        if not any(layer.is_pair for layer in self.layers):
            first = f" (its first key is {shown(names[0])})" if names else ""
            raise FormatError(f"{self.source}: holds no LoRA factors{first}; give a LoRA file, not a model or a merge")

    def _shape(self, keys: Mapping[Role, Key]) -> tuple[int, int] | None:
        """(d_out, d_in); a factor of a 1 x 1 convolution counts as the matrix it is."""
        for role in ("a", "b"):
            if role in keys:
                shape = self._file.shape(keys[role].text)
                if len(shape) > 2 and any(extent != 1 for extent in shape[2:]):
                    raise FormatError(
                        f"{self.source}: {shown(keys[role].text)} is a convolution {list(shape)}; only LoRAs of linear "
                        "layers are read: train without convolutions"
                    )
                if len(shape) < 2:
                    raise FormatError(f"{self.source}: {shown(keys[role].text)} is {list(shape)}, not a matrix")
        if "a" not in keys or "b" not in keys:
            return None
        return self._file.shape(keys["b"].text)[0], self._file.shape(keys["a"].text)[1]

    def factors(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """A [r, d_in] and B [d_out, r] as stored, without any scale, in float32.

        Raises:
            FormatError: one of them is missing, their ranks differ, or a value is not finite.
        """
        if "a" not in layer.keys or "b" not in layer.keys:
            (single,) = (key for role, key in layer.keys.items() if role in ("a", "b"))
            raise FormatError(
                f"{self.source}: {shown(single.text)} stands without its other factor; the file is incomplete: save it "
                "again"
            )
        a, b = self.tensor(layer.keys["a"]).flatten(1), self.tensor(layer.keys["b"]).flatten(1)
        if a.shape[0] != b.shape[1] or a.shape[0] == 0:
            raise FormatError(
                f"{self.source}: the factors of {shown(layer.name)} do not match, A {list(a.shape)} and "
                f"B {list(b.shape)}; the file is corrupt: save it again"
            )
        return a, b

    def tensor(self, key: Key) -> Tensor:
        """One tensor in float32.

        Raises:
            FormatError: it is not of a floating type, or holds NaN or infinity.
        """
        tensor = self._file.read(key.text)
        if not tensor.is_floating_point():
            raise FormatError(f"{self.source}: {shown(key.text)} holds {tensor.dtype}, not floating-point numbers")
        tensor = tensor.to(torch.float32)
        if not all_finite(tensor):
            raise FormatError(
                f"{self.source}: {shown(key.text)} holds NaN or infinity: its training diverged; use an earlier save"
            )
        return tensor

    def alpha(self, layer: Layer) -> float | None:
        """The stored alpha of a layer, None where it has none."""
        if "alpha" not in layer.keys:
            return None
        key = layer.keys["alpha"]
        stored = self._file.read(key.text)
        if stored.numel() != 1:
            raise FormatError(f"{self.source}: {shown(key.text)} is not a single number; save the file again")
        return float(stored.to(torch.float64))

    def all_keys(self) -> Iterator[Key]:
        for layer in self.layers:
            yield from layer.keys.values()
        yield from self.others

    def __enter__(self) -> "LoraFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite. One pass: any such value shows in the sum."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


class FiniteCheck(Generic[Name]):
    """Looks for NaN and infinity in tensors that come in parts. A GPU is asked at the end, not for each part."""

    def __init__(self) -> None:
        self._largest: list[tuple[list[Name], Tensor]] = []

    def add(self, tensors: Mapping[Name, Tensor]) -> None:
        """Takes tensors of one device."""
        held = {name: x.float() if x.itemsize == 1 else x for name, x in tensors.items() if x.numel()}
        if held:
            largest = torch._foreach_norm(list(held.values()), float("inf"))
            self._largest.append((list(held), torch.stack([value.float() for value in largest])))

    def first_not_finite(self) -> Name | None:
        """The first name whose tensor holds NaN or infinity."""
        for names, largest in self._largest:
            for name, value in zip(names, largest.tolist(), strict=True):
                if not math.isfinite(value):
                    return name
        return None


def _locate(path: str | Path) -> str:
    text = str(path)
    if not re.match(r"^[A-Za-z][A-Za-z0-9+.-]*://", text) and Path(text).is_dir():
        for name in _FOLDER_FILES:
            if (Path(text) / name).is_file():
                return str(Path(text) / name)
        raise FormatError(f"{text}: a folder without {' or '.join(_FOLDER_FILES)}; give the LoRA file itself")
    return text
