"""Data parallelism for the world's own training: one process a GPU under torchrun, gradients averaged in one call.

The models are small and their gradients fit one message, so a plain all-reduce after the backward pass costs less
than a wrapper and leaves torch.compile alone. Training on a cluster is another matter and another module's.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Worker", "average_gradients", "join", "leave"]


@dataclass(frozen=True, slots=True)
class Worker:
    """This process among its peers."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def same_on_all(self, value: float) -> float:
        """The first worker's value, so that a schedule by the clock is one schedule."""
        if self.size == 1:
            return value
        message = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(message, 0)
        return float(message)

    def mean(self, value: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def gather(self, value: Tensor) -> Tensor:
        """Equal-sized tensors of all workers, concatenated along dimension 0."""
        if self.size == 1:
            return value
        parts = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)


def join() -> Worker:
    """Joins the group that torchrun describes in the environment; a group of one where there is none."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if size > 1 and not dist.is_initialized():
        # Some stages keep the first worker busy alone, for longer than the ten minutes others would wait.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1))
    return Worker(rank, size, device)


def leave() -> None:
    """Takes leave of the group, which all its workers do together."""
    if dist.is_initialized():
        dist.destroy_process_group()


def average_gradients(parameters: Iterable[Tensor], worker: Worker) -> None:
    """Replaces every gradient by its mean over the workers, through one flat message."""
    if worker.size == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    flat /= worker.size
    for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(piece.view_as(gradient))
