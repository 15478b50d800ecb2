"""Tensors on their way to a file: nothing lost, nothing in another order."""

import pytest
import torch

from p2e import staging
from p2e.staging import grouped, host_bytes


def test_bytes_come_in_order() -> None:
    tensors = [
        torch.randn(3, 5),
        torch.randn(8, 4).bfloat16().mT,
        torch.tensor(2.0),
        torch.zeros(0, 4),
        torch.arange(7),
    ]
    expected = b"".join(t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for t in tensors)
    assert b"".join(part.numpy().tobytes() for _, part in host_bytes(enumerate(tensors))) == expected


def test_groups_fit_a_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tensors on a device other than the CPU, here one without data."""
    monkeypatch.setattr(staging, "STAGED_BYTES", 100)
    tensors = [torch.empty(size, dtype=torch.uint8, device="meta") for size in (40, 40, 30, 250, 0, 10, 90, 1)]
    sizes = [[part.numel() for _, part in group] for group in grouped(enumerate(tensors))]
    assert sizes == [
        [40, 40],
        [30],
        [250],
        [10, 90],
        [1],
    ]
    mixed = [torch.empty(4, dtype=torch.uint8, device=device) for device in ("meta", "cpu", "cpu", "meta", "meta")]
    assert [len(group) for group in grouped(enumerate(mixed))] == [1, 1, 1, 2]
