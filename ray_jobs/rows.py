"""Rows of (image, prompt, LoRA) from JSONL or Parquet, and the digests by which their clips are known."""

import functools
import json
from pathlib import Path
from typing import Annotated, Any

import fsspec
from pydantic import AfterValidator, Field

from p2e.adapt.cache import digest_of
from p2e.config import Settings
from p2e.errors import ConfigError, InputError
from p2e.files import read_text, sha256
from p2e.text import check_prompt

__all__ = ["RenderRow", "content", "read_rows", "row_key"]


class RenderRow(Settings):
    """One clip to be rendered.

    Attributes:
        image: first frame, local or an fsspec URL; relative paths start at the folder of the rows, as those of LoRAs.
        lora: LoRA file, or {expert: file} for a base of two transformers; None renders the base.
        strength: scale of the LoRA's update.
        seed: of the initial noise.
        id: anything; it stands in the result.
    """

    image: str
    prompt: Annotated[str, AfterValidator(check_prompt)]
    lora: str | dict[str, str] | None = None
    strength: float = Field(default=1.0, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    id: str | None = None

    def files(self) -> dict[str, str]:
        """Expert, "" where there is one file, -> LoRA file."""
        return {} if self.lora is None else {"": self.lora} if isinstance(self.lora, str) else self.lora


def read_rows(path: str) -> list[RenderRow]:
    """The rows of a .jsonl or .parquet file, local or an fsspec URL, with their paths resolved.

    Raises:
        ConfigError: a row is not as described; the message names it.
        InputError: the file cannot be read.
    """
    values = _parquet(path) if path.endswith(".parquet") else _jsonl(path)
    rows = []
    for number, value in values:
        kept = {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value
        row = RenderRow.parse(kept, f"{path}: row {number}")
        lora: Any = {expert: _beside(path, file) for expert, file in row.files().items() if file}
        rows.append(
            row.model_copy(update={"image": _beside(path, row.image), "lora": lora.get("", lora) if lora else None})
        )
    if not rows:
        raise InputError(f'{path}: no rows; write one a line, such as {{"image": "a.png", "prompt": "it melts"}}')
    return rows


def _jsonl(path: str) -> list[tuple[int, Any]]:
    values = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            try:
                values.append((number, json.loads(line)))
            except ValueError as error:
                raise ConfigError(f"{path}: row {number} is not JSON ({error}); write one object a line") from None
    return values


def _parquet(path: str) -> list[tuple[int, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with fsspec.open(path, "rb") as file:
            table = parquet.read_table(file)
    except (OSError, ValueError, ImportError, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())[:200]})") from None
    rows = table.to_pylist()
    for row in rows:
        if isinstance(row.get("lora"), dict):  # a column of structs has every expert in every row
            row["lora"] = {expert: file for expert, file in row["lora"].items() if file} or None
    return list(enumerate(rows, 1))


def _beside(rows: str, path: str) -> str:
    if "://" in path or Path(path).is_absolute():
        return path
    folder = rows.rpartition("/")[0]
    return f"{folder}/{path}" if "://" in rows else str((Path(folder) / path).resolve())


def row_key(row: RenderRow, common: str) -> str:
    """What a clip is known by: a digest of all that it shows.

    Args:
        common: digest of the base, the settings and the type of numbers.
    """
    loras = sorted((expert, content(file)) for expert, file in row.files().items())
    return digest_of(common, content(row.image), row.prompt, loras, row.strength, row.seed)[:32]


@functools.lru_cache(maxsize=1 << 16)
def content(path: str) -> str:
    """Digest of a file, or of a folder's files; of its name where it cannot be read, which rendering will say."""
    try:
        file_system, inner = fsspec.core.url_to_fs(path)
        if not file_system.isdir(inner):
            beside = f"{path.rpartition('/')[0] or '.'}/adapter_config.json"  # scales may stand there
            return digest_of(sha256(path), sha256(beside) if file_system.exists(beside) else "")
        files = sorted(str(name) for name in file_system.find(inner, maxdepth=1))
        return digest_of(*(sha256(file_system.unstrip_protocol(name)) for name in files))
    except Exception:  # every file system has errors of its own
        return path
