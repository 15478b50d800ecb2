"""The manifest of a library: which LoRA belongs to which effect, and the prompts that describe it.

YAML:                                         JSONL, the base on the first line:
    base: world                                   {"base": "world"}
    entries:                                      {"effect": "squish", "prompts": [...], "lora": "loras/squish..."}
      - effect: squish                            ...
        prompts: [the subject is squeezed flat]
        lora: loras/squish.safetensors
        split: train
"""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import fsspec
from pydantic import AfterValidator, Field, PrivateAttr, model_validator

from p2e.bases.base import Base
from p2e.config import Settings
from p2e.errors import ConfigError, FormatError, InputError
from p2e.files import read_text, sha256
from p2e.lora.formats import read_lora
from p2e.lora.lora import Factors, Lora, Provenance
from p2e.text import check_prompt

__all__ = ["Entry", "Manifest", "Split", "read_effect"]

Split = Literal["train", "heldout", "ood"]


class Entry(Settings):
    """One effect of a library.

    Attributes:
        effect: its name, unique in the library.
        prompts: paraphrases that describe it; one is drawn a training step.
        lora: path or fsspec URL of its LoRA, relative to the manifest. For a base with several experts, one file for
            each: {high_noise: ..., low_noise: ...}.
        sha256: hex digest of the file, checked before it is read; by expert where `lora` is.
        weight: how often the effect is drawn in training, relative to the others.
        split: "train"; "heldout", a new effect like those in train; or "ood", unlike any of them.
    """

    effect: str = Field(min_length=1, pattern=r"\S")
    prompts: tuple[Annotated[str, AfterValidator(check_prompt)], ...] = ()
    lora: str | dict[str, str]
    sha256: str | dict[str, str] | None = None
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    split: Split = "train"

    @model_validator(mode="after")
    def _digests_match_files(self) -> Self:
        experts = set(self.lora) if isinstance(self.lora, dict) else None
        digests = set(self.sha256) if isinstance(self.sha256, dict) else None
        if not self.lora or (self.sha256 is not None and experts != digests):
            raise ValueError(f"effect {self.effect}: lora names no file, or sha256 is not given for the same experts")
        return self

    def files(self) -> list[tuple[str | None, str, str | None]]:
        """(expert, path as written, digest) of each file; the expert is None where the entry names none."""
        if isinstance(self.lora, str):
            return [(None, self.lora, self.sha256 if isinstance(self.sha256, str) else None)]
        digests = self.sha256 if isinstance(self.sha256, dict) else {}
        return [(expert, path, digests.get(expert)) for expert, path in self.lora.items()]


class Manifest(Settings):
    """A library: the base its LoRAs are for, and its effects."""

    base: str
    entries: tuple[Entry, ...] = Field(min_length=1)
    _folder: str = PrivateAttr("")

    @model_validator(mode="after")
    def _effects_are_unique(self) -> Self:
        name, count = Counter(entry.effect for entry in self.entries).most_common(1)[0]
        if count > 1:
            raise ValueError(f"effect {name} appears {count} times; give each entry a name of its own")
        return self

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads YAML, JSON, or JSONL by its suffix; relative LoRA paths are then resolved against its folder.

        Raises:
            ConfigError: one line: missing file, not YAML or JSON, unknown keys, duplicate effects, empty prompts.
        """
        manifest = cls.parse(_read_jsonl(path), str(path)) if str(path).endswith(".jsonl") else super().load(path)
        manifest._folder = str(path).rpartition("/")[0] if "://" in str(path) else str(Path(path).parent)
        return manifest

    def locate(self, path: str) -> str:
        """A LoRA's path as written in the manifest, resolved against the manifest's folder; URLs stay as they are."""
        if "://" in path or not self._folder or Path(path).is_absolute():
            return path
        return f"{self._folder}/{path}" if "://" in self._folder else str(Path(self._folder) / path)

    def check_base(self, base: Base) -> None:
        """Raises InputError where the library is for another base."""
        if self.base != base.name:
            raise InputError(f"the library is for {self.base}, not for {base.name}; choose the base {self.base}")

    @property
    def hash(self) -> str:
        """Hex digest of what the manifest says, whatever its format and place."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def _read_jsonl(path: str | Path) -> dict[str, Any]:
    try:
        text = read_text(path)
    except InputError as error:
        raise ConfigError(str(error)) from None
    lines: list[Any] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                lines.append(json.loads(line))
            except ValueError as error:
                raise ConfigError(f"{path}: line {number} is not JSON ({error}); write one object a line") from None
    if not lines or not isinstance(lines[0], dict) or "effect" in lines[0]:
        raise ConfigError(f'{path}: the first line must name the base, such as {{"base": "world"}}')
    return {**lines[0], "entries": lines[1:]}


def read_effect(manifest: Manifest, entry: Entry, base: Base) -> Lora:
    """The LoRA of one entry; that of a base with several experts is put together from its files.

    Raises:
        FormatError: a file is missing, is not the one the manifest's digest names, or cannot be read as a LoRA.
    """
    loras: list[Lora] = []
    for expert, written, digest in entry.files():
        path = manifest.locate(written)
        check_file(path, digest)
        loras.append(read_lora(path, base, expert=expert))
    if len(loras) == 1:
        return loras[0]
    factors: dict[str, Factors] = {}
    for lora in loras:
        if shared := factors.keys() & lora.factors.keys():
            source = lora.provenance.source
            raise FormatError(
                f"{source}: adapts {min(shared)} as another file of {entry.effect} does; name one file an expert"
            )
        factors |= lora.factors
    first = loras[0].provenance
    provenance = Provenance(
        source=", ".join(lora.provenance.source for lora in loras),
        family=", ".join(dict.fromkeys(lora.provenance.family for lora in loras)),
        scales={key: value for lora in loras for key, value in lora.provenance.scales.items()},
        ignored={key: value for lora in loras for key, value in lora.provenance.ignored.items()},
        metadata=first.metadata,
    )
    biases = {key: bias for lora in loras for key, bias in lora.biases.items()}
    return Lora(base.name, factors, biases, provenance)


def check_file(path: str, digest: str | None = None) -> None:
    """Raises FormatError where the file is missing or its SHA-256 is not `digest`."""
    try:
        file_system, inner = fsspec.core.url_to_fs(path)
        if not file_system.exists(inner):
            raise FormatError(f"{path}: no such file; correct its path in the manifest")
        if digest is not None and (found := sha256(path)) != digest.lower():
            differ = f"sha256 is {found[:12]}.., the manifest says {digest[:12]}.."
            raise FormatError(f"{path}: {differ}; download it again or correct the manifest")
    except (OSError, ValueError, ImportError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path}: cannot be read ({error}); check the path and its permissions") from None
