"""Inputs of a measurement: a base's site shapes with random weights, and a prepared library of random targets.

The files are those of a real run, so that they are read as a real run's are; only what takes time to compute is left
out. Targets are Gaussian factors whose components fall off in size: as rows of some thousand entries they are nearly
orthogonal, as canonical ones are, without a decomposition.

Shapes: E effects, r rank.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from p2e.bases import WeightReader
from p2e.bases.base import Base, Site
from p2e.bases.wan import wan_base
from p2e.config import TrainConfig
from p2e.files import sha256, write_safetensors, write_text
from p2e.lora.prepared import INDEX, SITES, EffectIndex, Index, PreparedLibrary, SiteIndex
from p2e.text import TextStates

if TYPE_CHECKING:
    from ray_jobs.training.inputs import Inputs

__all__ = ["RandomEncoder", "Size", "SpeedInputs", "make_inputs", "speed_base"]

WEIGHTS, LIBRARY = "base", "library"
THREADS = 8


@dataclass(frozen=True)
class Size:
    """Sizes of the inputs; the defaults are those of Wan2.1-I2V-14B, with a tenth of its blocks.

    A block has every site shape of the base in the base's proportions, so that a step over some blocks computes what
    one over all of them does. What grows with blocks is what a resident run keeps on the GPU.

    Attributes:
        blocks: of the base's 40.
        heads, head_dim, ffn: of the base.
        effects: of the library.
        rank: of the targets.
        text_width: of a token state.
        tokens: to which prompts are padded.
        words: least and most real tokens of a prompt.
    """

    blocks: int = 4
    heads: int = 40
    head_dim: int = 128
    ffn: int = 13824
    effects: int = 50
    rank: int = 32
    text_width: int = 4096
    tokens: int = 512
    words: tuple[int, int] = (20, 100)


def speed_base(size: Size) -> Base:
    """The site table of Wan2.1-I2V-14B's form at some sizes."""
    return wan_base(
        "wan-speed", num_layers=size.blocks, heads=size.heads, head_dim=size.head_dim, ffn=size.ffn, in_channels=36,
        out_channels=16, image_dim=1280, text_dim=size.text_width,
    )  # fmt: skip


class RandomEncoder:
    """Random token states [N, T, D], the same ones for the same prompts in any process."""

    def __init__(self, size: Size) -> None:
        self.size, self.width = size, size.text_width

    def encode(self, prompts: Sequence[str]) -> TextStates:
        states = torch.zeros(len(prompts), self.size.tokens, self.width)
        mask = torch.zeros(len(prompts), self.size.tokens, dtype=torch.bool)
        least, most = self.size.words
        for i, prompt in enumerate(prompts):
            seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:6], "big")
            generator = torch.Generator().manual_seed(seed)
            length = least + seed % (most - least + 1)
            states[i, :length] = torch.randn(length, self.width, generator=generator)
            mask[i, :length] = True
        return TextStates(states, mask)


@dataclass(frozen=True)
class SpeedInputs:
    """Opens the inputs of a measurement on any worker, as `ray_jobs.training.inputs.open_inputs` does a real run's."""

    folder: Path
    size: Size

    def __call__(self, config: TrainConfig) -> "Inputs":
        from ray_jobs.training.inputs import Inputs  # what needs no Ray is measured without it

        base = speed_base(self.size)
        weights = WeightReader(base, self.folder / WEIGHTS)
        return Inputs(base, weights, PreparedLibrary.open(config.library), lambda: RandomEncoder(self.size))

    @property
    def library(self) -> str:
        return str(self.folder / LIBRARY)


def make_inputs(folder: Path, size: Size, device: torch.device) -> SpeedInputs:
    """Writes base weights and library, unless `folder` holds them.

    Args:
        device: where random numbers are drawn; a GPU takes seconds for what takes a CPU a minute.

    Raises:
        OutputError: the folder cannot be written.
    """
    inputs = SpeedInputs(folder, size)
    if (folder / LIBRARY / INDEX).exists():
        return inputs
    base = speed_base(size)
    with ThreadPoolExecutor(THREADS) as pool:
        shards = [pool.submit(write_block, folder / WEIGHTS, base, block, device) for block in range(size.blocks)]
        sites = list(pool.map(lambda site: write_targets(folder / LIBRARY / SITES, site, size, device), base.sites))
        for shard in shards:
            shard.result()
    effects = tuple(
        EffectIndex(
            name=f"effect_{i}", prompts=(f"the picture shows random effect {i}",), split="train", weight=1.0, norm=1.0,
            lost=0.0,
        )
        for i in range(size.effects)
    )  # fmt: skip
    index = Index(base=base.name, rank=size.rank, targets="canonical", manifest="random", effects=effects,
                  sites=tuple(sites))  # fmt: skip
    write_text(folder / LIBRARY / INDEX, index.to_json())
    return inputs


def normal(shape: Sequence[int], device: torch.device, seed: int, dtype: torch.dtype) -> Tensor:
    """Standard normal numbers on the CPU, drawn on a device."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=device, dtype=torch.float32).to(dtype).cpu()


def write_block(folder: Path, base: Base, block: int, device: torch.device) -> None:
    """A shard of base weights, bfloat16, of the magnitude of trained ones."""
    sites = [site for site in base.sites if site.block == block]
    weights = {
        f"{site.name}.weight": normal((site.d_out, site.d_in), device, site.index, torch.bfloat16).mul_(0.02)
        for site in sites
    }
    write_safetensors(folder / f"diffusion_pytorch_model-{block:05d}.safetensors", weights)


def write_targets(folder: Path, site: Site, size: Size, device: torch.device) -> SiteIndex:
    """One site's record -> its line of the index."""
    spectrum = (1 + torch.arange(size.rank)).float().rsqrt()
    a = normal((size.effects, size.rank, site.d_in), device, 1_000_000 + site.index, torch.float32)
    b = normal((size.effects, site.d_out, size.rank), device, 2_000_000 + site.index, torch.float32)
    a *= spectrum[:, None]
    b *= spectrum
    scale = float(spectrum.square().mean().sqrt())  # of both: their entries are independent
    path = folder / f"{site.key}.safetensors"
    covered, lost = torch.ones(size.effects, dtype=torch.bool), torch.zeros(size.effects)
    write_safetensors(path, {"a": a, "b": b, "mask": covered, "lost": lost})
    return SiteIndex(
        key=site.key, d_out=site.d_out, d_in=site.d_in, covered=size.effects, scale_a=scale, scale_b=scale,
        bytes=path.stat().st_size, sha256=sha256(path),
    )  # fmt: skip
