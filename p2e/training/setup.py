"""What every training run is made of, with Ray or without: model, data, order of the samples, checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from p2e.bases import WeightReader
from p2e.bases.base import Base
from p2e.config import TrainConfig
from p2e.errors import ConfigError
from p2e.hypernet.checkpoint import save_checkpoint
from p2e.hypernet.variants import Predictor, build_hypernet
from p2e.lora.prepared import PreparedLibrary
from p2e.text import TextEncoder
from p2e.training.batches import Sampler, share_sites
from p2e.training.data import Source, open_source
from p2e.training.evaluate import evaluate

__all__ = ["DTYPES", "Run", "assemble", "pick_device"]

EVALUATED = 32  # effects of a split
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Run:
    """A run before its first step.

    Attributes:
        device, dtype: where it computes, and the type of the matrix products.
        model: the hypernetwork, with parameters that `config.seed` determines.
        source: of its batches.
        sampler: the order of the samples; micro-batch j of step t is row t x `config.micro_batches` + j.
        hashes: of base and library; a continuation must have the same.
    """

    config: TrainConfig
    base: Base
    library: PreparedLibrary
    device: torch.device
    dtype: torch.dtype
    model: nn.Module
    source: Source
    sampler: Sampler
    hashes: dict[str, str]

    @property
    def pairs(self) -> int:
        """(site, effect) samples of a step."""
        return sum(self.sampler.draws) * self.sampler.effects_per_step * self.config.micro_batches

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Errors on every split of the library, of at most EVALUATED effects of each that have a prompt."""
        values: dict[str, float] = {}
        splits = self.source.splits
        for split in sorted(set(splits)):
            effects = [i for i, name in enumerate(splits) if name == split and self.source.prompts[i][1]]
            if not effects:
                continue
            errors = evaluate(cast(Predictor, model), self.source, effects[:EVALUATED], dtype=self.dtype)
            values |= {f"{split}/{name}": value for name, value in errors.items()}
        return values

    def save(self, folder: Path, model: nn.Module, step: int) -> None:
        """Writes the checkpoint that inference reads."""
        save_checkpoint(
            folder, model, base=self.base, config=self.config.hypernet, scales=self.source.scales,
            targets=self.library.targets, step=step, training=self.config.model_dump(mode="json"),
            dtype=DTYPES[self.config.checkpoint_precision], **self.hashes,
        )  # fmt: skip


def assemble(
    config: TrainConfig, base: Base, weights: WeightReader, library: PreparedLibrary, encoder: TextEncoder, *,
    opened: Callable[..., Source] = open_source,
) -> Run:  # fmt: skip
    """Puts a run together.

    Args:
        opened: makes the source; called as `open_source` is.

    Raises:
        InputError: base, library and configuration do not fit together.
    """
    if library.rank != config.hypernet.rank:
        raise ConfigError(f"the library has rank {library.rank}; set hypernet.rank: {library.rank}")
    device, dtype = pick_device(config.device), DTYPES[config.precision]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model: nn.Module = build_hypernet(config.hypernet, base)
    model.to(device)
    source = opened(
        base, weights, library, encoder, cast(Predictor, model), device=device, dtype=dtype,
        resident_bytes=config.resident_gb * 1e9, across_sites=config.hypernet.across_sites, augment=config.augment,
        metric=config.metric,
    )  # fmt: skip
    sizes = tuple(len(group.sites) for group in source.groups)
    sampler = Sampler(
        sizes=sizes, draws=share_sites(sizes, config.sites_per_step), effects=tuple(source.train),
        prompts=tuple(source.prompts[i] for i in source.train),
        effects_per_step=min(config.effects_per_step, len(source.train)), seed=config.seed,
        augment=config.augment.active,
    )  # fmt: skip
    hashes = {"base_hash": weights.hash, "library_hash": library.hash}
    return Run(config, base, library, device, dtype, model, source, sampler, hashes)


def pick_device(name: str) -> torch.device:
    """ "auto" is a GPU where there is one.

    Raises:
        ConfigError: there is no such device.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ConfigError(f"device: {name} is not available here; use auto, cpu or cuda") from None
    return device
