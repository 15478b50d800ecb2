"""What the hardware itself can do, measured beside everything else: matrix rate and copy bandwidth."""

import time
from collections.abc import Callable

import torch

__all__ = ["copy_bandwidth", "float8_rate", "host_bandwidth", "matrix_rate", "seconds_per_call", "synchronise"]

SECONDS = 0.3  # of each measurement; a GPU is warm by then
REPEATS = 5


def seconds_per_call(function: Callable[[], object], device: torch.device, seconds: float = SECONDS) -> float:
    """Median over REPEATS runs of the time of a call, each run long enough to hide launch and clock."""

    def timed(calls: int) -> float:
        synchronise(device)
        start = time.perf_counter()
        for _ in range(calls):
            function()
        synchronise(device)
        return (time.perf_counter() - start) / calls

    timed(3)
    calls = max(1, round(seconds / REPEATS / max(timed(3), 1e-9)))
    return sorted(timed(calls) for _ in range(REPEATS))[REPEATS // 2]


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(
    device: torch.device, m: int, k: int, n: int, dtype: torch.dtype = torch.bfloat16, seconds: float = SECONDS
) -> float:
    """FLOP/s of a product of random matrices [m, k] and [k, n] (zeros would draw less power and run faster)."""
    a, b = torch.randn(m, k, device=device).to(dtype), torch.randn(k, n, device=device).to(dtype)
    out = torch.empty(m, n, device=device, dtype=dtype)
    return 2 * m * k * n / seconds_per_call(lambda: torch.mm(a, b, out=out), device, seconds)


def copy_bandwidth(device: torch.device, size: int, seconds: float = SECONDS) -> float:
    """Bytes read plus bytes written a second, copying `size` bytes on the device."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds_per_call(lambda: target.copy_(source), device, seconds)


def float8_rate(device: torch.device, side: int, seconds: float = SECONDS) -> float:
    """FLOP/s of a product of square matrices in float8, with a scale a row."""
    a, b = (torch.randn(side, side, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    rows, columns = torch.ones(side, 1, device=device), torch.ones(1, side, device=device)

    def product() -> object:
        return torch._scaled_mm(a, b.mT, rows, columns, out_dtype=torch.bfloat16, use_fast_accum=True)

    return 2 * side**3 / seconds_per_call(product, device, seconds)


def host_bandwidth(device: torch.device, size: int, seconds: float = SECONDS) -> float:
    """Bytes a second from pinned host memory to the device (on a CPU: from memory to memory)."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8)
    source = source.pin_memory() if device.type == "cuda" else source
    target = torch.empty(size, dtype=torch.uint8, device=device)
    return size / seconds_per_call(lambda: target.copy_(source, non_blocking=True), device, seconds)
