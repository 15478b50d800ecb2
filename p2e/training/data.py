"""What a step reads: weights, targets and token states, kept on the device while they fit, else read ahead from disk.

Shapes: S sites of one shape a step, E effects a step, N sites and F effects in all, r rank, T tokens.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from p2e.bases import WeightReader
from p2e.bases.base import Base, Site
from p2e.config import AugmentConfig, MetricConfig
from p2e.errors import InputError
from p2e.hypernet.model import Sites, Weights
from p2e.hypernet.variants import Predictor
from p2e.lora.prepared import PreparedLibrary
from p2e.text import TextEncoder, TextStates
from p2e.training.augment import Augmented, augmented
from p2e.training.metric import SiteMetric, read_metric

__all__ = ["Batch", "Group", "Records", "ResidentSource", "SiteReader", "Source", "StreamedSource", "open_source"]


class Batch(NamedTuple):
    """One step's input, a list entry a shape: sites, targets A* [S, E, r, d_in] and B* [S, E, d_out, r] in units of
    the site's scale, weight [S, E] (0 where not covered); token states [E, T, D] and mask [E, T] of all; share [E] of
    the next effect in each effect's target, if any are blended; the metric of the sites, if errors have one."""

    sites: list[Sites]
    a: list[Tensor]
    b: list[Tensor]
    weight: list[Tensor]
    text: Tensor
    text_mask: Tensor
    share: Tensor | None = None
    metric: list[SiteMetric] | None = None


@dataclass(frozen=True)
class Group:
    """The trained sites of one shape."""

    d_out: int
    d_in: int
    sites: tuple[Site, ...]


class Targets(NamedTuple):
    """Of N sites of one shape: weights, indices, and for all F effects scaled targets and weight."""

    sites: Sites
    a: Tensor
    b: Tensor
    weight: Tensor

    def tensors(self) -> list[Tensor]:
        w = self.sites.weights
        return [
            *((w,) if isinstance(w, Tensor) else w),
            self.sites.block,
            self.sites.module,
            self.a,
            self.b,
            self.weight,
        ]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Targets":
        *weights, block, module, a, b, weight = map(function, self.tensors())
        return Targets(
            Sites(weights[0] if len(weights) == 1 else (weights[0], weights[1]), block, module), a, b, weight
        )

    def take(self, sites: Tensor, effects: Tensor) -> "Targets":
        """Those of some sites [S] and effects [E]."""
        w, pair = self.sites.weights, (sites[:, None], effects[None])
        weights: Weights = w[sites] if isinstance(w, Tensor) else (w[0][sites], w[1][sites])
        kept = Sites(weights, self.sites.block[sites], self.sites.module[sites])
        return Targets(kept, self.a[pair], self.b[pair], self.weight[pair])


class Records(NamedTuple):
    """What is read of S sites of one shape, on the CPU: W0 [S, d_out, d_in] in its stored type; of some effects A* and
    B* in units of the site's scale, float32; weight [S, E], 0 where a LoRA does not cover the site."""

    w0: Tensor
    a: Tensor
    b: Tensor
    weight: Tensor


@dataclass(frozen=True)
class SiteReader:
    """Reads sites of a base and of a prepared library; can be pickled, so that other processes read as well.

    Attributes:
        scales: site key -> (scale of A, of B).
        effect_weight: of every effect of the library, [F].
    """

    weights: WeightReader
    library: PreparedLibrary
    scales: Mapping[str, tuple[float, float]]
    effect_weight: Tensor

    @cached_property
    def dtype(self) -> torch.dtype:
        """The type in which W0 is handed out: the one it is stored in, the widest where sites differ."""
        by_key = self.weights.base.by_key
        return functools.reduce(torch.promote_types, {self.weights.dtype(by_key[key]) for key in self.scales})

    def read(self, sites: Sequence[Site], effects: Sequence[int] | None = None) -> Records:
        """Sites of one shape with some effects, or with all."""
        records = [self.library.site(site.key, effects) for site in sites]
        weight = self.effect_weight if effects is None else self.effect_weight[list(effects)]
        return Records(
            torch.stack([self.weights.read(site).to(self.dtype) for site in sites]),
            torch.stack([record.a / self.scales[record.key][0] for record in records]),
            torch.stack([record.b / self.scales[record.key][1] for record in records]),
            torch.stack([record.mask for record in records]) * weight,
        )


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor on the device; the host does not wait for what the device still has to do."""
    if device.type == "cuda" and tensor.is_cpu:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Source:
    """Access to the library, base and prompts of a run.

    Args:
        device: where batches go.
        dtype: type in which W0 is kept; targets are float32.
        across_sites: the model's sites attend to each other.
        augment: how prompts are varied; its default expects rows without what augmentation needs.
        metric: of the errors; it is kept on the device.

    Raises:
        InputError: the library is of another base, or has no effect to train on, or covers no site, or the model's
            text cannot be fitted to its prompts.
    """

    def __init__(
        self, base: Base, weights: WeightReader, library: PreparedLibrary, encoder: TextEncoder, model: Predictor,
        *, device: torch.device, dtype: torch.dtype, across_sites: bool = False,
        augment: AugmentConfig = AugmentConfig(),  # noqa: B008  frozen
        metric: MetricConfig | None = None,
    ) -> None:  # fmt: skip
        if library.base_name != base.name:
            raise InputError(
                f"the library was prepared for {library.base_name}, not {base.name}; give the base it fits"
            )
        self.base, self.weights, self.library, self.model = base, weights, library, model
        self.device, self.dtype, self.across_sites, self.augment = device, dtype, across_sites, augment
        self.splits = [effect.split for effect in library.effects]
        self.train = [i for i, split in enumerate(self.splits) if split == "train"]
        if not self.train:
            raise InputError("the library has no effect with split: train; mark some in its manifest")
        self.scales = self._scales()
        self.groups = [
            Group(*shape, tuple(site for site in sites if site.key in self.scales))
            for shape, sites in base.shapes.items()
            if any(site.key in self.scales for site in sites)
        ]
        self.metric = self._metric(metric)
        effect_weight = torch.tensor([effect.weight for effect in library.effects], dtype=torch.float32)
        self.reader = SiteReader(weights, library, self.scales, effect_weight)
        prompts = [prompt for effect in library.effects for prompt in effect.prompts]
        counts = [len(effect.prompts) for effect in library.effects]
        self.prompts = [(sum(counts[:i]), count) for i, count in enumerate(counts)]
        text = self._text(encoder.encode(prompts).to(device))
        self.text, self.text_mask = text.states, text.mask

    def _text(self, states: TextStates) -> TextStates:
        """What the model reads of all prompts, once its map is fitted to those of the training effects."""
        of = torch.tensor([i for i, (_, count) in enumerate(self.prompts) for _ in range(count)])
        trained = torch.isin(of, torch.tensor(self.train))
        self.model.text_input.fit(states[trained.to(self.device)], of[trained])
        return self.model.text_input(states).without_padding()

    def _scales(self) -> dict[str, tuple[float, float]]:
        """(scale of A, of B) of the sites that some training effect covers; the others cannot be trained."""
        scales: dict[str, tuple[float, float]] = {}
        for site in self.library.index.sites:
            known = site.key in self.base.by_key and min(site.scale_a, site.scale_b) > 0
            if known and bool(self.library.mask(site.key)[self.train].any()):
                scales[site.key] = (site.scale_a, site.scale_b)
        if not scales:
            raise InputError(f"no training effect of the library covers a site of {self.base.name}; check the library")
        return scales

    def _metric(self, config: MetricConfig | None) -> list[SiteMetric] | None:
        """Of all sites of each group."""
        if config is None:
            return None
        found = read_metric(config, self.base.name, [group.sites for group in self.groups])
        return [SiteMetric(*(x.to(self.device) for x in metric)) for metric in found]

    def load(self, sites: Sequence[Site], effects: Sequence[int] | None = None) -> Targets:
        """Reads sites of one shape, with some effects or with all, onto the device."""
        return self.placed(sites, self.reader.read(sites, effects))

    def placed(self, sites: Sequence[Site], records: Records) -> Targets:
        """What was read of some sites, as the model takes it, on the device."""
        block = torch.tensor([site.block for site in sites])
        module = torch.tensor([self.base.modules.index(site.module) for site in sites])
        w0 = records.w0.to(self.device).to(torch.float32)
        prepared = self.model.prepare(w0, block, module)
        parts = (prepared,) if isinstance(prepared, Tensor) else prepared
        kept = [part.to(self.dtype) for part in parts]
        weights: Weights = kept[0] if len(kept) == 1 else (kept[0], kept[1])
        return Targets(
            Sites(weights, block.to(self.device), module.to(self.device)),
            *(tensor.to(self.device) for tensor in records[1:]),
        )

    def targets(self, group: int, sites: Tensor, effects: Tensor) -> Targets:
        """Of some sites [S] of a group, for some effects [E]."""
        return self.load([self.groups[group].sites[i] for i in sites.tolist()], effects.tolist())

    def chunks(self, effects: Tensor, sites: int) -> Iterator[list[Targets]]:
        """All trained sites, for some effects [E], at most `sites` of a shape at a time; all at once where sites
        attend to each other. A list entry a shape."""
        if self.across_sites:
            yield [self.targets(i, torch.arange(len(group.sites)), effects) for i, group in enumerate(self.groups)]
            return
        for i, group in enumerate(self.groups):
            for index in torch.arange(len(group.sites)).split(sites):
                yield [self.targets(i, index, effects)]

    def batch(self, row: Tensor, widths: Sequence[int]) -> Batch:
        """The batch of a sampler's row."""
        *sites, effects = row.split(list(widths))[: len(self.groups) + 1]
        return self.assembled(row, widths, [self.targets(group, index, effects) for group, index in enumerate(sites)])

    def assembled(self, row: Tensor, widths: Sequence[int], chosen: Sequence[Targets]) -> Batch:
        """The batch of a sampler's row, from the targets of its sites and effects; an entry a group."""
        row = moved(row, self.device)
        *sites, _, prompts = row.split(list(widths))[: len(self.groups) + 2]
        text = Augmented(self.text[prompts], self.text_mask[prompts], None)
        if self.augment.active:
            other, key = row.split(list(widths))[-2:]
            text = augmented(text.text, text.mask, self.text[other], key, self.augment)
        return Batch(
            [c.sites for c in chosen], [c.a for c in chosen], [c.b for c in chosen], [c.weight for c in chosen], *text,
            metric=self.metric and [m.take(i) for m, i in zip(self.metric, sites, strict=True)],
        )  # fmt: skip

    def batches(self, rows: Tensor, widths: Sequence[int]) -> Iterator[Batch]:
        """The batches of several rows, in order."""
        return (self.batch(row, widths) for row in rows)


class StreamedSource(Source):
    """Reads every step's sites from disk, one step ahead of the one that trains."""

    def batches(self, rows: Tensor, widths: Sequence[int]) -> Iterator[Batch]:
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(self.batch, rows[0], widths)
            for row in rows[1:]:
                ready = pending.result()
                pending = pool.submit(self.batch, row, widths)
                yield ready
            yield pending.result()


class ResidentSource(Source):
    """Keeps everything on the device; a batch is a few gathers by index tensors, with no host synchronisation."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # pyright: ignore[reportArgumentType]
        self._resident = [self._load_all(group.sites) for group in self.groups]

    def _load_all(self, sites: Sequence[Site]) -> Targets:
        """`load`, a site at a time into place, so that no second copy of a base is ever in memory."""
        whole: Targets | None = None
        for index, site in enumerate(sites):
            one = self.load([site])
            whole = whole or one.map(lambda x: x.new_empty(len(sites), *x.shape[1:]))
            for place, value in zip(whole.tensors(), one.tensors(), strict=True):
                place[index] = value[0]
        assert whole is not None
        return whole

    def targets(self, group: int, sites: Tensor, effects: Tensor) -> Targets:
        return self._resident[group].take(moved(sites, self.device), moved(effects, self.device))


def open_source(
    base: Base, weights: WeightReader, library: PreparedLibrary, encoder: TextEncoder, model: Predictor,
    *, device: torch.device, dtype: torch.dtype, resident_bytes: float, **options: Any,
) -> Source:  # fmt: skip
    """A resident source where W0 and targets take at most `resident_bytes`, else a streamed one; `options` as for
    `Source`."""
    sites = [base.by_key[key] for key in library.keys if key in base.by_key]
    factors = 4 * library.rank * len(library.effects)
    needed = sum(s.d_out * s.d_in * dtype.itemsize + factors * (s.d_out + s.d_in) for s in sites)
    kind = ResidentSource if needed <= resident_bytes else StreamedSource
    return kind(base, weights, library, encoder, model, device=device, dtype=dtype, **options)
