"""A LoRA that comes in parts is the file that it is when it comes whole."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lora_files import random_lora, small_wan

from p2e.bases.base import Base
from p2e.errors import InputError
from p2e.lora.formats import LoraFormat, write_lora
from p2e.lora.lora import Factors, Lora
from p2e.lora.write import write_lora_parts


def outline(lora: Lora) -> Lora:
    factors = {key: Factors(a.to("meta"), b.to("meta")) for key, (a, b) in lora.factors.items()}
    return Lora(lora.base, factors, {key: bias.to("meta") for key, bias in lora.biases.items()})


def parts(lora: Lora, count: int = 3) -> Iterator[Lora]:
    """Sites from last to first, a few at a time."""
    keys = sorted({*lora.factors, *lora.biases}, reverse=True)
    for start in range(0, len(keys), count):
        some = keys[start : start + count]
        yield Lora(
            lora.base,
            {key: lora.factors[key] for key in some if key in lora.factors},
            {key: lora.biases[key] for key in some if key in lora.biases},
        )


def some_lora(base: Base) -> Lora:
    """Ranks of 1 to 3, some sites not covered."""
    return random_lora(base, {site.key: 1 + i % 3 for i, site in enumerate(base.sites) if i % 5 != 2})


@pytest.mark.parametrize("fmt", ["wan", "diffusers", "kohya"])
@pytest.mark.parametrize("base", [small_wan(image=True), small_wan(experts=True)], ids=["image", "experts"])
def test_the_same_bytes(base: Base, fmt: LoraFormat, tmp_path: Path) -> None:
    lora, metadata = some_lora(base), {"prompt": "it melts"}
    whole = write_lora(tmp_path / "whole.safetensors", lora, base, fmt, metadata=metadata)
    found = write_lora_parts(tmp_path / "parts.safetensors", outline(lora), parts(lora), base, fmt, metadata=metadata)
    assert len(found) == len(whole) == len(base.experts)
    for x, y in zip(whole, found, strict=True):
        assert x.read_bytes() == y.read_bytes()


def test_biases_come_in_parts_too(tmp_path: Path) -> None:
    base = small_wan()
    lora = some_lora(base)
    biases = {site.key: torch.randn(site.d_out) for site in base.sites[:4]}
    lora = Lora(base.name, lora.factors, biases)
    (whole,) = write_lora(tmp_path / "whole.safetensors", lora, base)
    (found,) = write_lora_parts(tmp_path / "parts.safetensors", outline(lora), parts(lora), base)
    assert whole.read_bytes() == found.read_bytes()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_last_part_that_is_not_finite_leaves_nothing(bad: float, tmp_path: Path) -> None:
    base = small_wan(experts=True)
    lora = some_lora(base)
    key = next(iter(next(p for p in reversed(list(parts(lora))) if p.factors).factors))
    lora.factors[key].a[0, 0] = bad
    with pytest.raises(InputError, match=f"{key} holds NaN, infinity or more than"):
        write_lora_parts(tmp_path / "x.safetensors", outline(lora), parts(lora), base, dtype=torch.float16)
    assert not list(tmp_path.iterdir())


def test_what_breaks_half_way_leaves_nothing(tmp_path: Path) -> None:
    base = small_wan(experts=True)
    lora = some_lora(base)

    def broken() -> Iterator[Lora]:
        yield from list(parts(lora))[:2]
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        write_lora_parts(tmp_path / "x.safetensors", outline(lora), broken(), base)
    assert not list(tmp_path.iterdir())
