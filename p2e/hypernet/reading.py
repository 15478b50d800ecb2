"""Sites of a base on their way to the hypernetwork, beside what the GPU computes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from p2e.bases import WeightReader
from p2e.bases.base import Site
from p2e.errors import InputError
from p2e.hypernet.checkpoint import Checkpoint
from p2e.hypernet.model import Sites

__all__ = ["check_base", "copy_stream", "read_ahead", "read_sites", "use_here"]

_STREAMS: dict[torch.device, torch.cuda.Stream] = {}


def copy_stream(device: torch.device) -> torch.cuda.Stream:
    return _STREAMS.setdefault(device, torch.cuda.Stream(device))


def use_here(ready: torch.cuda.Event, *tensors: Tensor) -> None:
    """Lets the current stream use what another one has made, and keep its memory as long."""
    stream = torch.cuda.current_stream(tensors[0].device)
    stream.wait_event(ready)
    for tensor in tensors:
        tensor.record_stream(stream)


def read_ahead(
    checkpoint: Checkpoint, weights: WeightReader, sites: Sequence[Site]
) -> tuple[Sites, torch.cuda.Event | None]:
    """`read_sites` beside what the GPU computes -> the sites, and what to wait for before they are used."""
    if checkpoint.device.type != "cuda":
        return read_sites(checkpoint, weights, sites), None
    stream, event = copy_stream(checkpoint.device), torch.cuda.Event()
    with torch.cuda.stream(stream):
        found = read_sites(checkpoint, weights, sites)
        event.record(stream)
    return found, event


@torch.no_grad()
def read_sites(checkpoint: Checkpoint, weights: WeightReader, sites: Sequence[Site]) -> Sites:
    """What the network takes for sites of one shape, on its device and in its type."""
    base, device = checkpoint.base, checkpoint.device
    block = torch.tensor([site.block for site in sites])
    module = torch.tensor([base.modules.index(site.module) for site in sites])
    prepared = []
    for i, site in enumerate(sites):  # one by one: what `prepare` needs may be far larger than what it gives
        w0 = weights.read(site).to(device, non_blocking=True)
        w0 = w0.to(torch.promote_types(w0.dtype, checkpoint.dtype))[None]
        found = checkpoint.model.prepare(w0, block[[i]], module[[i]])
        prepared.append([part.to(checkpoint.dtype) for part in ((found,) if isinstance(found, Tensor) else found)])
    parts = [torch.cat(part) for part in zip(*prepared, strict=True)]
    return Sites(parts[0] if len(parts) == 1 else (parts[0], parts[1]), block.to(device), module.to(device))


def check_base(checkpoint: Checkpoint, weights: WeightReader) -> None:
    """Refuses weights of another base; another fine-tune of the same base is allowed, as its sites are the same.

    Raises:
        InputError: name or sites differ.
    """
    base, given = checkpoint.base, weights.base
    if given.name != base.name or given.sites != base.sites:
        raise InputError(
            f"{checkpoint.folder}: predicts for {base.name}, but the weights given are of {given.name}; "
            "give the base that it was trained on"
        )
