"""Tensors on their way from a GPU to a file, through two pinned buffers: one fills while the other is written."""

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

__all__ = ["STAGED_BYTES", "host_bytes"]

STAGED_BYTES = 32 << 20  # of a buffer


def host_bytes(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """The bytes of tensors, in order, as uint8 tensors in host memory: each may be used until the next is asked for."""
    pending: deque[tuple[Tensor, torch.cuda.Event]] = deque()
    buffers: deque[Tensor] = deque()
    for group in grouped(tensors):
        if not group[0].is_cuda:
            while pending:
                yield arrived(pending.popleft())
            yield group[0]
            continue
        if not buffers:
            buffers.extend(torch.empty(STAGED_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2))
        flat = torch.cat(group)
        large = flat.numel() > STAGED_BYTES  # a tensor by itself
        buffer = torch.empty(flat.numel(), dtype=torch.uint8, pin_memory=True) if large else buffers[0]
        buffers.rotate(0 if large else 1)
        target = buffer[: flat.numel()].copy_(flat, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(flat.device))
        pending.append((target, event))
        if len(pending) == 2:
            yield arrived(pending.popleft())
    while pending:
        yield arrived(pending.popleft())


def arrived(copy: tuple[Tensor, torch.cuda.Event]) -> Tensor:
    copy[1].synchronize()
    return copy[0]


def grouped(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Flat bytes of tensors: one by one from the CPU, from a GPU as many as fit a buffer."""
    group: list[Tensor] = []
    for tensor in tensors:
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        if not flat.numel():
            continue
        held = sum(part.numel() for part in group)
        if group and (held + flat.numel() > STAGED_BYTES or flat.device != group[0].device):
            yield group
            group = []
        group.append(flat)
        if flat.device.type == "cpu":
            yield group
            group = []
    if group:
        yield group
