"""Where a base's tensors lie: finding transformers, shards and tensor names in the ways that checkpoints come.

Local paths and fsspec URLs alike; safetensors only.
"""

import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import fsspec

from p2e.bases.base import EXPERTS, Shapes
from p2e.errors import FormatError, InputError
from p2e.files import SafetensorsFile, read_text

__all__ = ["Checkpoint", "find_transformers"]

# What files put before the names of the transformer's tensors, longest first.
PREFIXES = ("model.diffusion_model.", "diffusion_model.")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
WHOLE = "diffusion_pytorch_model.safetensors"
# Folders of the two experts: diffusers, then the original release.
EXPERT_FOLDERS = (dict(EXPERTS), {"high_noise": "high_noise_model", "low_noise": "low_noise_model"})
EXPERT_IN_NAME = re.compile(r"(?i)(?<![a-z])(high|low)(?![a-z])")


class Checkpoint:
    """One transformer's tensors: a shard or several, opened lazily.

    Args:
        location: path or URL of the folder or file that they came from, for messages and for its config.json.
        shards: paths or URLs of the safetensors files.
    """

    def __init__(self, location: str, shards: list[str]) -> None:
        self.location = location
        self.shards = shards

    @cached_property
    def tensors(self) -> dict[str, tuple[SafetensorsFile, str]]:
        """Tensor name without the file's prefix -> (open file, name in that file).

        Raises:
            FormatError: a shard is missing or corrupt, or two files hold the same tensor.
        """
        table: dict[str, tuple[SafetensorsFile, str]] = {}
        for shard in self.shards:
            file = SafetensorsFile(shard)
            for raw in file.specs:
                name = next((raw.removeprefix(prefix) for prefix in PREFIXES if raw.startswith(prefix)), raw)
                if name in table:
                    raise FormatError(
                        f"{self.location}: {table[name][0].path} and {shard} both hold {name}; give one of the files"
                    )
                table[name] = file, raw
        return table

    @cached_property
    def shapes(self) -> Shapes:
        return {name: file.shape(raw) for name, (file, raw) in self.tensors.items()}

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The config.json in the folder, or beside the file; empty if there is none.

        Raises:
            FormatError: it is not a JSON object.
        """
        path = _join(self.location if _is_folder(self.location) else _parent(self.location), "config.json")
        if not _exists(path):
            return {}
        return _read_json(path)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The header of the first shard."""
        return next(iter(self.tensors.values()))[0].metadata if self.tensors else {}

    def close(self) -> None:
        if "tensors" in self.__dict__:
            for file in {id(file): file for file, _ in self.tensors.values()}.values():
                file.close()


def find_transformers(location: str) -> dict[str | None, Checkpoint]:
    """The transformers at a location, by expert; the key None where there is one.

    The location is a diffusers pipeline folder, a folder of one transformer (diffusers or original, in shards or
    not), the folder of an original two-expert release, a folder with a file for each expert, one safetensors file, or
    the index of its shards.

    Raises:
        InputError: there is nothing at the location.
        FormatError: nothing there can be read, or it is ambiguous.
    """
    if not _exists(location):
        raise InputError(f"{location}: no such file or folder; check the path, or give a base's name")
    if not _is_folder(location):
        return {None: Checkpoint(location, _shards_of_file(location))}
    names = _list(location)
    for folders in EXPERT_FOLDERS:
        present = {expert: _join(location, folder) for expert, folder in folders.items() if folder in names}
        if len(present) == len(folders):
            return {expert: Checkpoint(path, _shards_of_folder(path)) for expert, path in present.items()}
    if EXPERTS["high_noise"] in names:
        path = _join(location, EXPERTS["high_noise"])
        return {None: Checkpoint(path, _shards_of_folder(path))}
    shards = _shards_of_folder(location)
    experts = {shard: _expert_in_name(shard) for shard in shards}
    if set(experts.values()) == set(EXPERTS):
        return {e: Checkpoint(location, [shard for shard in shards if experts[shard] == e]) for e in EXPERTS}
    return {None: Checkpoint(location, shards)}


def _shards_of_file(path: str) -> list[str]:
    if path.endswith(PICKLES):
        raise FormatError(f"{path}: pickled weights are not read; convert them to safetensors where you trust them")
    if path.endswith(".json"):
        return _shards_of_index(path)
    return [path]


def _shards_of_folder(folder: str) -> list[str]:
    """The safetensors files of a folder: those of its index, else the one with diffusers' name, else all."""
    names = sorted(_list(folder))
    indexes = [name for name in names if name.endswith(".safetensors.index.json")]
    if f"{WHOLE}.index.json" in indexes:
        return _shards_of_index(_join(folder, f"{WHOLE}.index.json"))
    if WHOLE in names:
        return [_join(folder, WHOLE)]
    if len(indexes) > 1:
        raise FormatError(f"{folder}: has {len(indexes)} indexes ({', '.join(indexes[:3])}); give the path of one")
    if indexes:
        return _shards_of_index(_join(folder, indexes[0]))
    files = [_join(folder, name) for name in names if name.endswith(".safetensors")]
    if files:
        return files
    if any(name.endswith(PICKLES) for name in names):
        raise FormatError(f"{folder}: has pickled weights only; convert them to safetensors where you trust them")
    raise FormatError(f"{folder}: has no safetensors file and no transformer folder; give the folder with the weights")


def _shards_of_index(path: str) -> list[str]:
    weight_map = _read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{path}: has no weight_map; download it again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if PurePosixPath(name).name != name:
            raise FormatError(f"{path}: names the shard {name!r}, which is not in its own folder; download it again")
    return [_join(_parent(path), name) for name in names]


def _expert_in_name(path: str) -> str | None:
    found = {match.lower() for match in EXPERT_IN_NAME.findall(PurePosixPath(path.replace("\\", "/")).name)}
    return f"{found.pop()}_noise" if len(found) == 1 else None


def _read_json(path: str) -> dict[str, Any]:
    try:
        values = json.loads(read_text(path))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise FormatError(f"{path}: is not valid JSON ({error}); download it again") from None
    if not isinstance(values, dict):
        raise FormatError(f"{path}: is not a JSON object; download it again")
    return values


def _filesystem(location: str) -> tuple[Any, str]:
    try:
        return fsspec.core.url_to_fs(location)
    except (ValueError, ImportError) as error:
        raise InputError(f"{location}: cannot be opened ({error}); check the address") from None


def _call(location: str, method: str, **options: Any) -> Any:
    fs, path = _filesystem(location)
    try:
        return getattr(fs, method)(path, **options)
    except Exception as error:  # every remote file system has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{location}: cannot be read ({reason}); check the address and your access to it") from None


def _exists(location: str) -> bool:
    return bool(_call(location, "exists"))


def _is_folder(location: str) -> bool:
    return bool(_call(location, "isdir"))


def _list(folder: str) -> set[str]:
    return {entry.rstrip("/").rpartition("/")[2] for entry in _call(folder, "ls", detail=False)}


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")
