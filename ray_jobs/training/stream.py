"""Ray Data brings every worker the sites of its micro-batches, in an order that seed and step alone determine.

A row of the dataset is a micro-batch: the weights of its sites, which all its effects share, and the targets of its
effects at them. One task reads one row, so many are read at once, on any node; `streaming_split` deals rows out in turn
(`preserve_order`, one row a block), so row i of a window goes to worker i mod W whatever the timing. A window is a
range of steps that one streaming execution reads.

Shapes: S sites of one shape, E effects, W workers, P micro-batches a step; a worker takes ceil(P / W) of them.
"""

import queue
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from p2e.errors import InputError
from p2e.training.batches import Sampler
from p2e.training.data import Batch, Group, Records, SiteReader, Source
from p2e.training.setup import Run
from ray_jobs.training.config import StreamConfig

__all__ = ["MicroBatches", "Slots", "StreamedBatches", "resident_batches"]


@dataclass(frozen=True)
class Slots:
    """How W workers share the P micro-batches of a step.

    Attributes:
        parts: P.
        world: W.
    """

    parts: int
    world: int

    @property
    def each(self) -> int:
        """Micro-batches of a worker a step; where W does not divide P, some of the last worker's count nothing."""
        return -(-self.parts // self.world)

    def counts(self, slot: int, rank: int) -> bool:
        return slot * self.world + rank < self.parts

    def index(self, step: int, slot: int, rank: int) -> int:
        """The sampler's row for a slot of a step; padding repeats the last one."""
        return step * self.parts + min(slot * self.world + rank, self.parts - 1)


class MicroBatches:
    """Reads rows of the dataset, in tasks of Ray Data.

    Args:
        run: gives reader, groups and sampler; nothing else of it is kept.
        slots: how workers share a step.
        start: first step of the window.
    """

    def __init__(self, run: Run, slots: Slots, start: int) -> None:
        self.reader: SiteReader = run.source.reader
        self.groups: tuple[Group, ...] = tuple(run.source.groups)
        self.sampler: Sampler = run.sampler
        self.slots, self.start = slots, start

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """{"id": [1]} -> {"index": [1], "w0_G": [1, S, d_out, d_in], "a_G": [1, S, E, r, d_in], ...}, G a group."""
        step, rest = divmod(int(batch["id"][0]), self.slots.each * self.slots.world)
        slot, rank = divmod(rest, self.slots.world)
        index = self.slots.index(self.start + step, slot, rank)
        *sites, effects = torch.tensor(self.sampler.row(index)).split(list(self.sampler.widths))[: len(self.groups) + 1]
        row: dict[str, np.ndarray] = {"index": np.array([index])}
        for place, (group, chosen) in enumerate(zip(self.groups, sites, strict=True)):
            records = self.reader.read([group.sites[i] for i in chosen.tolist()], effects.tolist())
            for name, tensor in zip(Records._fields, records, strict=True):
                # numpy has no bfloat16
                plain = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
                row[f"{name}_{place}"] = plain.numpy()[None]
        return row


class Ready(NamedTuple):
    """A micro-batch on its device, with the sampler's row that it was read for."""

    row: int
    batch: Batch


class StreamedBatches:
    """The micro-batches of one worker, on its device, `prefetch` ahead of the step.

    Args:
        run: the run; the rows must be asked for in step order.
        rank: of this worker.
        steps: first and last (exclusive) step.
    """

    def __init__(self, run: Run, config: StreamConfig, slots: Slots, rank: int, steps: tuple[int, int]) -> None:
        self.run, self.config, self.slots, self.rank, self.steps = run, config, slots, rank, steps
        self._windows: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ready: queue.Queue[Ready | BaseException] = queue.Queue(config.prefetch)
        self._stream = torch.cuda.Stream(run.device) if run.device.type == "cuda" else None
        self._announced = steps[0]
        self._announce()
        self._announce()
        threading.Thread(target=self._feed, daemon=True, name="micro-batches").start()

    def _announce(self) -> None:
        """All workers learn of the next window; the first one makes it."""
        import ray
        from ray.train.collective import broadcast_from_rank_zero

        start, stop = self._announced, min(self._announced + self.config.window, self.steps[1])
        if start >= stop:
            return
        reference: Any = ray.put(self._window(start, stop)) if self.rank == 0 else None
        self._reference = broadcast_from_rank_zero([reference])[0]
        self._windows.put(ray.get(self._reference)[self.rank])
        self._announced = stop
        if stop == self.steps[1]:
            self._windows.put(None)

    def _window(self, start: int, stop: int) -> Sequence[Any]:
        """The dataset of some steps, split over the workers."""
        import ray.data

        context = ray.data.DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        rows = (stop - start) * self.slots.each * self.slots.world
        read: Any = MicroBatches(self.run, self.slots, start).__call__
        with ray.data.DataContext.current(context):
            dataset = ray.data.range(rows, override_num_blocks=rows).map_batches(
                read, batch_size=1, num_cpus=self.config.cpus
            )
            return dataset.streaming_split(self.slots.world, equal=True)

    def _feed(self) -> None:
        # What the object store holds is read-only, and is only read.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        try:
            while (shard := self._windows.get()) is not None:
                batches = shard.iter_batches(
                    batch_size=None, batch_format="numpy", prefetch_batches=self.config.prefetch
                )
                for row in batches:
                    self._ready.put(self._placed(row))
        except BaseException as error:
            self._ready.put(error)

    def _placed(self, row: dict[str, np.ndarray]) -> Ready:
        source, sampler, index = self.run.source, self.run.sampler, int(row["index"][0])
        if self._stream is None:
            return Ready(index, self._batch(source, sampler, row, index))
        with torch.cuda.stream(self._stream):  # beside the step that computes
            batch = self._batch(source, sampler, row, index)
        self._stream.synchronize()
        return Ready(index, batch)

    def _batch(self, source: Source, sampler: Sampler, row: dict[str, np.ndarray], index: int) -> Batch:
        order = torch.tensor(sampler.row(index))
        chosen = []
        for place, (group, sites) in enumerate(zip(source.groups, order.split(list(sampler.widths)), strict=False)):
            values = [self._tensor(row[f"{name}_{place}"][0]) for name in Records._fields]
            records = Records(values[0].view(source.reader.dtype), *values[1:])
            chosen.append(source.placed([group.sites[i] for i in sites.tolist()], records))
        return source.assembled(order, sampler.widths, chosen)

    def _tensor(self, array: np.ndarray) -> Tensor:
        if self._stream is None:
            return torch.from_numpy(array if array.flags.writeable else array.copy())
        return torch.from_numpy(array).pin_memory()  # the one copy out of the object store

    def step(self, step: int) -> Iterator[Batch]:
        """The micro-batches of this worker at a step, in order of its slots.

        Raises:
            InputError: what came is not what the order of the samples asks for.
        """
        if step + self.config.window >= self._announced:
            self._announce()
        for slot in range(self.slots.each):
            ready = self._ready.get()
            if isinstance(ready, BaseException):
                raise ready
            if ready.row != self.slots.index(step, slot, self.rank):
                raise InputError(
                    f"step {step}: micro-batch {ready.row} came instead of "
                    f"{self.slots.index(step, slot, self.rank)}; start the run again, it goes on from its checkpoint"
                )
            if self._stream is not None:
                hold(ready.batch, torch.cuda.current_stream(self.run.device))
            yield ready.batch


def hold(batch: Any, stream: torch.cuda.Stream) -> None:
    """Keeps the memory of a batch, which another stream made, until `stream` is done with it: the host drops its last
    reference long before, and the next batch would be copied into it."""
    if isinstance(batch, Tensor):
        batch.record_stream(stream)
    elif isinstance(batch, Sequence):
        for part in batch:
            hold(part, stream)


def resident_batches(run: Run, slots: Slots, rank: int, step: int) -> Iterator[Batch]:
    """The same micro-batches where the whole library and base are on the device."""
    rows = [slots.index(step, slot, rank) for slot in range(slots.each)]
    for row in rows:
        yield run.source.batch(run.sampler.plan(row, 1)[0], run.sampler.widths)
