"""The scale of a LoRA's layers: what stands between the stored factors and the update they make.

One rule for every family, applied once a layer, first match first:
1. a stored `.alpha` tensor: alpha / r;
2. the header's `lora_adapter_metadata` (diffusers), or `adapter_config.json` beside a PEFT file: lora_alpha / r,
   lora_alpha / sqrt(r) for rsLoRA, with rank_pattern and alpha_pattern;
3. otherwise 1: writers that store no alpha set it to the rank.
The tensor stands nearest to the weights it was trained with, so it wins where a file has both.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import fsspec

from p2e.errors import FormatError

__all__ = ["HEADER_KEY", "AdapterConfig", "config_beside", "header_config"]

HEADER_KEY = "lora_adapter_metadata"
_PEFT_DEFAULT_ALPHA = 8.0  # of peft.LoraConfig, which diffusers fills in where the header has none
_MAX_CONFIG_BYTES = 10 << 20


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of PEFT's LoraConfig that decide the scale.

    Attributes:
        where: the file, and the entry in it, for error messages.
        rank, alpha: the defaults; None where the configuration is silent.
        ranks, alphas: regular expressions over layer names -> the layer's own value.
        rslora: whether alpha is divided by the root of the rank.
    """

    where: str
    rank: int | None = None
    alpha: float | None = None
    ranks: Mapping[str, float] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False

    def scale(self, names: Iterable[str], rank: int) -> float:
        """The scale of one layer.

        Args:
            names: the names the layer may have in the patterns.
            rank: the rank of its stored factors.

        Raises:
            FormatError: the configuration gives the layer another rank than its factors have.
        """
        names = tuple(names)
        stated = self._match(self.ranks, names, self.rank)
        alpha = self._match(self.alphas, names, self.alpha)
        if stated is not None and stated != rank:
            raise FormatError(
                f"{self.where}: rank {stated:g} for {names[0]}, whose factors have rank {rank}; correct the entry, or "
                "remove it if the factors need no scale"
            )
        if stated is None and alpha is None:
            return 1.0
        alpha = _PEFT_DEFAULT_ALPHA if alpha is None else alpha
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def _match(self, patterns: Mapping[str, float], names: tuple[str, ...], default: float | None) -> float | None:
        # A pattern matches a whole name or its end after a dot, as in PEFT.
        for pattern, value in patterns.items():
            try:
                if any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
                    return value
            except re.error as error:
                raise FormatError(f"{self.where}: pattern {pattern[:80]!r} is not valid ({error}); mend it") from None
        return default


def header_config(source: str, metadata: Mapping[str, str]) -> AdapterConfig | None:
    """The configuration in a safetensors header, None where it has none for a transformer.

    Raises:
        FormatError: it is not valid, or asks for something that is not a plain LoRA.
    """
    if HEADER_KEY not in metadata:
        return None
    where = f"{source}: header entry {HEADER_KEY}"
    settings = _parse(where, metadata[HEADER_KEY])
    for prefix in ("transformer.", "transformer_2."):
        own = {name.removeprefix(prefix): value for name, value in settings.items() if name.startswith(prefix)}
        if own:
            return _config(where, own)
    return _config(where, settings) if "r" in settings or "lora_alpha" in settings else None


def config_beside(source: str) -> AdapterConfig | None:
    """The `adapter_config.json` in the folder of a file, local or fsspec; None where there is none.

    Raises:
        FormatError: it is not valid, or describes something that is not a plain LoRA.
    """
    folder, _, _ = source.rpartition("/")
    path = f"{folder}/adapter_config.json" if folder else "adapter_config.json"
    try:
        with fsspec.open(path, "rb") as file:
            text = file.read(_MAX_CONFIG_BYTES)  # pyright: ignore[reportAttributeAccessIssue]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ImportError) as error:
        raise FormatError(f"{path}: cannot be read ({error}); check its permissions") from None
    return _config(path, _parse(path, text))


def _parse(where: str, text: str | bytes) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not valid JSON ({error}); write the file again") from None
    if not isinstance(settings, dict):
        raise FormatError(f"{where}: not a JSON object; write the file again")
    return settings


def _config(where: str, settings: Mapping[str, Any]) -> AdapterConfig:
    kind = settings.get("peft_type") or "LORA"
    if str(kind).rpartition(".")[2].upper() != "LORA" or settings.get("use_dora"):
        name = "DoRA" if settings.get("use_dora") else str(kind)[:40]
        raise FormatError(f"{where}: this is {name}, not a product of two factors; train a plain LoRA instead")
    try:
        return AdapterConfig(
            where=where,
            rank=None if settings.get("r") is None else int(settings["r"]),
            alpha=None if settings.get("lora_alpha") is None else _finite(settings["lora_alpha"]),
            ranks={str(k): _finite(v) for k, v in (settings.get("rank_pattern") or {}).items()},
            alphas={str(k): _finite(v) for k, v in (settings.get("alpha_pattern") or {}).items()},
            rslora=bool(settings.get("use_rslora")),
        )
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise FormatError(f"{where}: r, lora_alpha or a pattern is not a number ({error}); mend it") from None


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not finite")
    return number
