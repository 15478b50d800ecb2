"""Reading and writing files safely: safetensors by byte range through fsspec, writes by rename.

A user's file is never unpickled. Every header is checked before memory is taken for it.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import struct
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import torch
from torch import Tensor

from p2e.errors import FormatError, InputError, OutputError
from p2e.staging import host_bytes

__all__ = [
    "SafetensorsFile", "TensorSpec", "atomic_path", "file_sizes", "read_text", "safetensors_writer", "sha256",
    "write_safetensors", "write_text",
]  # fmt: skip

MAX_HEADER_BYTES = 100 << 20  # the limit of the safetensors library itself
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Where one tensor of a safetensors file lies: its type, shape, and byte range within the data section."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """A safetensors file opened lazily, on any fsspec file system.

    Args:
        path: a local path or an fsspec URL.

    Raises:
        FormatError: the file is missing, truncated, a pickle, or its header is not valid.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        try:
            self._file: Any = fsspec.open(self.path, "rb").open()  # pyright: ignore[reportAttributeAccessIssue]
            size = self._file.seek(0, os.SEEK_END)
        except FileNotFoundError:
            raise FormatError(f"{self.path}: no such file; check the path") from None
        except (OSError, ValueError, ImportError) as error:
            raise FormatError(f"{self.path}: cannot be opened ({error}); check the path and its permissions") from None
        self.metadata, self.specs = self._read_header(size)

    def _read_header(self, size: int) -> tuple[dict[str, str], dict[str, TensorSpec]]:
        self._file.seek(0)
        prefix = self._file.read(8)
        if len(prefix) < 8:
            raise FormatError(f"{self.path}: truncated, {size} bytes; download it again")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(MAX_HEADER_BYTES, size - 8):
            # Only now: a valid header's length may begin with the same bytes.
            if prefix[:1] == b"\x80" or prefix[:2] == b"PK":
                raise FormatError(f"{self.path}: this is a pickle, not safetensors; convert it where you trust it")
            raise FormatError(
                f"{self.path}: the header claims {length} bytes in a file of {size}; not safetensors, or truncated: "
                "download it again"
            )
        try:
            header: dict[str, Any] = json.loads(self._file.read(length))
            metadata = {str(k): str(v) for k, v in header.pop("__metadata__", {}).items()}
            specs = {
                name: TensorSpec(DTYPES[entry["dtype"]], tuple(entry["shape"]), *map(int, entry["data_offsets"]))
                for name, entry in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise FormatError(f"{self.path}: the safetensors header is not valid ({error}); write it again") from None
        self._data_start = 8 + length
        for name, spec in specs.items():
            label = ascii(name)[:120]  # names come from the file: keep the message to one line
            if any(type(extent) is not int or not 0 <= extent < 1 << 63 for extent in spec.shape):
                raise FormatError(f"{self.path}: tensor {label} has a shape that is not valid; write the file again")
            count = spec.dtype.itemsize * math.prod(spec.shape)
            if not 0 <= spec.start <= spec.stop or spec.stop - spec.start != count:
                raise FormatError(f"{self.path}: tensor {label} has a byte range that does not fit its shape")
            if self._data_start + spec.stop > size:
                raise FormatError(f"{self.path}: truncated, tensor {label} ends past the file; download it again")
        return metadata, specs

    def keys(self) -> list[str]:
        return list(self.specs)

    def __contains__(self, name: object) -> bool:
        return name in self.specs

    def shape(self, name: str) -> tuple[int, ...]:
        return self.specs[name].shape

    def read(self, name: str) -> Tensor:
        """One tensor, in the type it is stored in, on the CPU."""
        spec = self.specs[name]
        self._file.seek(self._data_start + spec.start)
        data = bytearray(self._file.read(spec.stop - spec.start))
        if not data:
            return torch.empty(spec.shape, dtype=spec.dtype)
        return torch.frombuffer(data, dtype=spec.dtype).reshape(spec.shape)

    def read_rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """Some entries of the first axis of one tensor, in the order given; nothing else of it is read."""
        spec = self.specs[name]
        size = (spec.stop - spec.start) // max(spec.shape[0], 1)
        data = bytearray().join(self.read_bytes(name, row * size, (row + 1) * size) for row in rows)
        if not data:
            return torch.empty((len(rows), *spec.shape[1:]), dtype=spec.dtype)
        return torch.frombuffer(data, dtype=spec.dtype).reshape(len(rows), *spec.shape[1:])

    def read_bytes(self, name: str, start: int, stop: int) -> bytes:
        """Bytes start to stop of one tensor, counted from its first."""
        spec = self.specs[name]
        self._file.seek(self._data_start + spec.start + start)
        return self._file.read(stop - start)

    def read_all(self) -> dict[str, Tensor]:
        return {name: self.read(name) for name in self.specs}

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "SafetensorsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed onto `path` at the end, removed on any error.

    For an fsspec URL the name is a local one, and the whole file is put in its place at the end.

    Raises:
        OutputError: the folder cannot be made or written to.
    """
    if "://" in str(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / str(path).rpartition("/")[2]
            yield temporary
            _put(temporary, str(path))
        return
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error}); choose another place") from None
    finally:
        with contextlib.suppress(OSError):  # where the folder could not be made, nothing is there to remove
            temporary.unlink(missing_ok=True)


def _put(local: Path, url: str) -> None:
    """Copies a file to an fsspec URL; a reader sees all of it or nothing, as far as the file system can commit."""
    try:
        file_system, inner = fsspec.core.url_to_fs(url)
        file_system.makedirs(inner.rpartition("/")[0], exist_ok=True)
        with local.open("rb") as source, file_system.transaction, file_system.open(inner, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)  # pyright: ignore[reportArgumentType]
    except (OSError, ValueError, ImportError) as error:
        raise OutputError(f"{url}: cannot be written ({error}); check the address and its permissions") from None


def file_sizes(folder: str | Path) -> dict[str, int]:
    """Names and sizes in bytes of what a folder of any fsspec file system holds, in one listing; none where there is no
    such folder.

    Raises:
        InputError: it cannot be listed.
    """
    try:
        file_system, inner = fsspec.core.url_to_fs(str(folder))
        file_system.invalidate_cache(inner)
        return {str(entry["name"]).rsplit("/", 1)[-1]: entry["size"] for entry in file_system.ls(inner, detail=True)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{folder}: cannot be listed ({error}); check the path and its permissions") from None


@contextlib.contextmanager
def safetensors_writer(
    path: str | Path, outline: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[Callable[[str, Tensor], None]]:
    """A safetensors file whose tensors are written one by one, in any order.

    Args:
        outline: of all tensors, in the order of the file: shapes and types, so that those of `meta` will do.

    Yields:
        what takes the name of a tensor and its bytes (uint8, in host memory). The file stands under its name once the
        context ends without an error.

    Raises:
        OutputError: `path` cannot be written; nothing is left there.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name, tensor in outline.items():
        stop = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, stop]
        }  # fmt: skip
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)

        def put(name: str, data: Tensor) -> None:
            start, stop = header[name]["data_offsets"]
            assert data.numel() == stop - start
            file.seek(8 + len(text) + start)
            file.write(data.numpy().data)

        yield put


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors, in the order given, without a second copy of the whole in memory; those of a GPU come through two
    pinned buffers, of which one fills while the other is written.

    Raises:
        OutputError: `path` cannot be written; nothing is left there.
    """
    with safetensors_writer(path, tensors, metadata) as put:
        for name, data in host_bytes(tensors.items()):
            put(name, data)


def read_text(path: str | Path) -> str:
    """A text file from any fsspec file system.

    Raises:
        InputError: it is missing or not UTF-8 text.
    """
    try:
        with fsspec.open(str(path), "r", encoding="utf-8") as file:
            return file.read()  # pyright: ignore[reportAttributeAccessIssue]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{path}: cannot be read as text ({error}); check the path") from None


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file by rename.

    Raises:
        OutputError: `path` cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: str | Path) -> str:
    """The hex digest of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with fsspec.open(str(path), "rb") as file:
        while piece := file.read(1 << 20):  # pyright: ignore[reportAttributeAccessIssue]
            digest.update(piece)
    return digest.hexdigest()
