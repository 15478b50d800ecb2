"""A trained hypernetwork as a folder that inference reads: safetensors and JSON only.

config.json         the resolved configuration, base and library with their hashes
sites.json          the base's site table, with the scales of A* and B* of the sites that were trained
model.safetensors   parameters, float32 or bfloat16, and the fixed map of the text, float32; its header names the digest
                    of the other two
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from p2e import __version__
from p2e.bases import get_base
from p2e.bases.base import Base
from p2e.config import HypernetConfig
from p2e.errors import ConfigError, FormatError, InputError
from p2e.files import SafetensorsFile, read_text, sha256, write_safetensors, write_text
from p2e.hypernet.hyperdreambooth import HyperDreamBooth
from p2e.hypernet.model import Hypernet
from p2e.hypernet.variants import Ensemble, build_hypernet

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]

FORMAT = "p2e-hypernet-1"
CONFIG, SITES, MODEL = "config.json", "sites.json", "model.safetensors"
AGAIN = "copy the checkpoint again, or give another one"


@dataclass(frozen=True)
class Checkpoint:
    """A hypernetwork ready to predict.

    Attributes:
        folder: where it was read from.
        model: the network, in evaluation mode and without gradients.
        base: the base whose sites it predicts.
        config: its size and form.
        scales: site key -> (scale of A, scale of B) of the sites it was trained on; predictions are multiplied by them.
        base_hash, library_hash: of what it was trained on.
        targets: "canonical" or "raw".
        settings: all of config.json.
    """

    folder: str
    model: Hypernet | Ensemble | HyperDreamBooth
    base: Base
    config: HypernetConfig
    scales: Mapping[str, tuple[float, float]]
    base_hash: str
    library_hash: str
    targets: str
    settings: Mapping[str, Any]

    @cached_property
    def hash(self) -> str:
        """Hex digest of the weights' file, whose header in turn names the digest of configuration and site table."""
        return sha256(f"{self.folder}/{MODEL}")

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype


def save_checkpoint(
    folder: str | Path,
    model: nn.Module,
    *,
    base: Base,
    config: HypernetConfig,
    scales: Mapping[str, tuple[float, float]],
    base_hash: str,
    library_hash: str,
    targets: str = "canonical",
    step: int = 0,
    training: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a checkpoint; each file by rename, the weights last.

    Args:
        scales: of the trained sites, by site key.
        step: optimizer steps that the weights have seen.
        training: the resolved training configuration, kept for the record.
        dtype: type in which the weights are written.

    Raises:
        OutputError: the folder cannot be written.
    """
    root, fixed = Path(folder), dict(model.named_buffers())
    settings = {
        "format": FORMAT,
        "p2e_version": __version__,
        "base": base.name,
        "base_hash": base_hash,
        "library_hash": library_hash,
        "targets": targets,
        "hypernet": config.model_dump(mode="json"),
        "training": dict(training or {}),
    }
    texts = {CONFIG: json.dumps(settings, indent=2) + "\n", SITES: site_table(base, scales)}
    for name, text in texts.items():
        write_text(root / name, text)
    write_safetensors(
        root / MODEL,
        {name: value.to("cpu", None if name in fixed else dtype) for name, value in model.state_dict().items()},
        {"format": FORMAT, "p2e_version": __version__, "step": str(step), "settings_sha256": digest(texts)},
    )
    return root


def site_table(base: Base, scales: Mapping[str, tuple[float, float]]) -> str:
    rows = []
    for site in base.sites:
        scale = scales.get(site.key)
        row = {"key": site.key, "block": site.block, "module": site.module, "d_out": site.d_out, "d_in": site.d_in}
        rows.append(json.dumps({**row, "scales": None if scale is None else list(scale)}))
    return "[\n" + ",\n".join(rows) + "\n]\n"


def digest(texts: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(texts[name] for name in (CONFIG, SITES)).encode()).hexdigest()


def load_checkpoint(
    folder: str | Path,
    device: str | torch.device = "cpu",
    *,
    dtype: torch.dtype | None = None,
    base: Base | None = None,
) -> Checkpoint:
    """Opens a checkpoint folder, local or on any fsspec file system.

    Args:
        dtype: type of the parameters; None keeps that of the file on a GPU and is float32 on a CPU, where bfloat16
            products are slow.
        base: its base, where that is none of the registered ones.

    Raises:
        FormatError: a file is missing, corrupt, or does not belong to the others.
        InputError: it is for another base than `base`.
    """
    root = str(folder).rstrip("/")
    texts = {name: _text(root, name) for name in (CONFIG, SITES)}
    settings, config = _settings(root, texts[CONFIG])
    base = base or get_base(settings["base"])
    if base.name != settings["base"]:
        raise InputError(f"{root}: predicts for {settings['base']}, not for {base.name}; give the base it fits")
    scales = _scales(root, texts[SITES], base)
    if dtype is None and torch.device(device).type == "cpu":
        dtype = torch.float32
    with torch.device("meta"):
        model = build_hypernet(config, base)
    with SafetensorsFile(f"{root}/{MODEL}") as file:
        if file.metadata.get("settings_sha256") != digest(texts):
            raise FormatError(f"{file.path}: does not belong to the {CONFIG} and {SITES} beside it; {AGAIN}")
        expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        found = {name: spec.shape for name, spec in file.specs.items()}
        if expected != found:
            name = min(name for name in expected | found if expected.get(name) != found.get(name))
            raise FormatError(
                f"{file.path}: {name} is {found.get(name)}, {CONFIG} makes it {expected.get(name)}; {AGAIN}"
            )
        tensors, fixed = {}, dict(model.named_buffers())
        for name in file.specs:
            tensor = file.read(name)
            if not bool(torch.isfinite(tensor).all()):
                raise FormatError(f"{file.path}: {name} has values that are not finite; {AGAIN}")
            tensors[name] = tensor.to(device, None if name in fixed else dtype)
    model.load_state_dict(tensors, assign=True)
    return Checkpoint(
        folder=root, model=model.eval().requires_grad_(False), base=base, config=config, scales=scales,
        base_hash=settings["base_hash"], library_hash=settings["library_hash"], targets=settings["targets"],
        settings=settings,
    )  # fmt: skip


def _text(root: str, name: str) -> str:
    try:
        return read_text(f"{root}/{name}")
    except InputError:
        raise FormatError(
            f"{root}: not a checkpoint, {name} is missing or not text; give the folder of a run"
        ) from None


def _settings(root: str, text: str) -> tuple[dict[str, Any], HypernetConfig]:
    keys = {"format", "base", "base_hash", "library_hash", "targets", "hypernet"}
    try:
        settings = json.loads(text)
        if not isinstance(settings, dict) or not keys <= set(settings) or settings["format"] != FORMAT:
            raise FormatError(f"{root}/{CONFIG}: not the configuration of a p2e checkpoint ({FORMAT}); {AGAIN}")
        return settings, HypernetConfig.parse(settings["hypernet"], f"{root}/{CONFIG}")
    except ConfigError as error:
        raise FormatError(f"{error}; or {AGAIN}") from None
    except json.JSONDecodeError as error:
        raise FormatError(f"{root}/{CONFIG}: not JSON ({error}); {AGAIN}") from None


def _scales(root: str, text: str, base: Base) -> dict[str, tuple[float, float]]:
    """The scales in sites.json, which must be the table of `base`."""
    try:
        rows = json.loads(text)
        table = [(row["key"], row["block"], row["module"], row["d_out"], row["d_in"]) for row in rows]
        scales = {row["key"]: (float(row["scales"][0]), float(row["scales"][1])) for row in rows if row["scales"]}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise FormatError(f"{root}/{SITES}: not a site table ({error!r}); {AGAIN}") from None
    if table != [(site.key, site.block, site.module, site.d_out, site.d_in) for site in base.sites]:
        raise FormatError(f"{root}/{SITES}: not the sites of {base.name} as this version knows them; {AGAIN}")
    if not scales:
        raise FormatError(f"{root}/{SITES}: no site has scales, so it was trained on none; {AGAIN}")
    return scales
