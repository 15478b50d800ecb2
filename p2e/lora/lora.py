"""A LoRA in memory: for each site it covers, factors A [r, d_in] and B [d_out, r] with dW = B A.

Every alpha, header scale and strength is already folded in, so no scale stands beside the factors.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Factors", "Lora", "Provenance"]


@dataclass(frozen=True, slots=True)
class Factors:
    """A [r, d_in] and B [d_out, r] of one site."""

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def delta(self) -> Tensor:
        """dW = B A, [d_out, d_in]. For tests and small sites; prefer Gram matrices."""
        return self.b @ self.a

    def __iter__(self) -> Iterator[Tensor]:
        yield self.a
        yield self.b


@dataclass(frozen=True)
class Provenance:
    """Where a LoRA came from and what reading it met.

    Attributes:
        source: path or URL, "" for one made in memory.
        family: "F1" to "F7" or "F9", the file family it was read as (`p2e.lora.keys.family_of`).
        scales: site key -> the factor (alpha / rank and the like) that was folded in.
        ignored: keys of the file that are not part of the update of any site, each with the reason.
        metadata: the file's own header.
    """

    source: str = ""
    family: str = ""
    scales: Mapping[str, float] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Lora:
    """A LoRA for one base.

    Attributes:
        base: name of the base.
        factors: site key -> factors; a site that is not here is not adapted.
        biases: site key -> bias update [d_out], where the file had one.
    """

    base: str
    factors: Mapping[str, Factors]
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def rank(self) -> int:
        """The largest rank of any site."""
        return max(f.rank for f in self.factors.values())
