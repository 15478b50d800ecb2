"""Tensors on their way from a GPU to a file, through two pinned buffers: one fills while the other is written."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["STAGED_BYTES", "host_bytes"]

STAGED_BYTES = 32 << 20  # of a buffer

T = TypeVar("T")


def host_bytes(tensors: Iterable[tuple[T, Tensor]]) -> Iterator[tuple[T, Tensor]]:
    """The bytes of named tensors, in order, each as a uint8 tensor in host memory that may be used until the next is
    asked for. Tensors without entries are left out.

    Those of a GPU are asked for before the copies of the last ones are waited for: whoever computes them one after the
    other keeps the GPU busy while bytes are used.
    """
    pending: deque[tuple[list[tuple[T, int]], Tensor, torch.cuda.Event]] = deque()
    buffers: deque[Tensor] = deque()
    for group in grouped(tensors):
        names, parts = [(name, part.numel()) for name, part in group], [part for _, part in group]
        if not parts[0].is_cuda:
            while pending:
                yield from arrived(*pending.popleft())
            yield group[0]
            continue
        if not buffers:
            buffers.extend(torch.empty(STAGED_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2))
        flat = torch.cat(parts)
        large = flat.numel() > STAGED_BYTES  # a tensor by itself
        buffer = torch.empty(flat.numel(), dtype=torch.uint8, pin_memory=True) if large else buffers[0]
        buffers.rotate(0 if large else 1)
        target = buffer[: flat.numel()].copy_(flat, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(flat.device))
        pending.append((names, target, event))
        if len(pending) == 2:
            yield from arrived(*pending.popleft())
    while pending:
        yield from arrived(*pending.popleft())


def arrived(names: list[tuple[T, int]], target: Tensor, event: torch.cuda.Event) -> Iterator[tuple[T, Tensor]]:
    event.synchronize()
    for (name, _), part in zip(names, target.split([size for _, size in names]), strict=True):
        yield name, part


def grouped(tensors: Iterable[tuple[T, Tensor]]) -> Iterator[list[tuple[T, Tensor]]]:
    """Flat bytes of tensors: one by one from the CPU, from a GPU as many as fit a buffer."""
    group: list[tuple[T, Tensor]] = []
    for name, tensor in tensors:
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        if not flat.numel():
            continue
        held = sum(part.numel() for _, part in group)
        if group and (held + flat.numel() > STAGED_BYTES or flat.device != group[0][1].device):
            yield group
            group = []
        group.append((name, flat))
        if flat.device.type == "cpu":
            yield group
            group = []
    if group:
        yield group
