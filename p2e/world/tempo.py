"""When things happen in a clip: the parameters of a batch as functions of time.

Shape legend: B clips, F frames; `dims` appends that many axes of length one, for pixels.
"""

import math

import torch
from torch import Tensor

from p2e.world.parameters import INDEX, EffectParams

__all__ = ["Tempo"]

ARRIVAL = 0.75  # share of an effect's time in which a visitor arrives, if nothing waits for it


def _ramp(u: Tensor, start: Tensor, end: Tensor, ease: Tensor) -> Tensor:
    """0 up to `start`, 1 from `end`, in between a straight line (ease 0) to a smooth step (ease 1). [B, F]"""
    linear = ((u - start) / (end - start).clamp(min=0.05)).clamp(0, 1)
    return linear + ease * (linear * linear * (3 - 2 * linear) - linear)


class Tempo:
    """The parameters of B clips over F frames; time u runs from 0 at the first frame to 1 at the last."""

    def __init__(self, params: EffectParams, frames: int) -> None:
        self.params = params
        self.frames = frames
        self.u = torch.linspace(0, 1, frames, device=params.values.device)
        start, end, ease = (t[:, None] for t in params.times.unbind(1))
        late = params["late"][:, None]
        middle = start + late * (end - start)
        self.main_ramp = _ramp(self.u, start, end, ease)
        self.late_ramp = _ramp(self.u, middle, end, ease)
        self.visit_ramp = _ramp(self.u, start, torch.where(late > 0, middle, start + ARRIVAL * (end - start)), ease)
        self._begun = (self.u[None] - start).clamp(min=0) / (1 - start)  # time since the start, [B, F]
        self._used = (params.values != 0).any(0).tolist()  # one synchronisation for all questions

    def rows(self, index: Tensor) -> "Tempo":
        """The same for the clips at `index`."""
        part = object.__new__(Tempo)
        part.__dict__.update(self.__dict__)
        part.params = self.params.select(index)
        part.main_ramp, part.late_ramp = self.main_ramp[index], self.late_ramp[index]
        part.visit_ramp, part._begun = self.visit_ramp[index], self._begun[index]
        return part

    def used(self, *names: str) -> bool:
        """Whether any clip of the whole batch has one of these parameters."""
        return any(self._used[INDEX[name]] for name in names)

    def value(self, name: str, dims: int = 0) -> Tensor:
        """The end value, [B, 1] and `dims` more."""
        return self.params[name].view(-1, 1, *(1,) * dims)

    def ramp(self, name: str, dims: int = 0) -> Tensor:
        """The value on its way, [B, F] and `dims` more: everything but visitors waits for `late`."""
        return (self.params[name][:, None] * self.late_ramp).view(-1, self.frames, *(1,) * dims)

    def late(self, name: str) -> Tensor:
        """`ramp` without further axes."""
        return self.params[name][:, None] * self.late_ramp

    def colour(self, name: str) -> Tensor:
        """[B, 1, 3, 1, 1] from the parameters name_r, name_g, name_b."""
        return torch.stack([self.params[f"{name}_{c}"] for c in "rgb"], dim=1).view(-1, 1, 3, 1, 1)

    def sprite(self, name: str) -> Tensor:
        """Sprite ids [B]."""
        return self.params[name].long()

    def phase(self, cycles: float, dims: int = 0) -> Tensor:
        """The angle of an oscillation of so many cycles a clip, 0 at the first frame. [B, F] and `dims` more."""
        return (2 * math.pi * cycles * self._begun).view(-1, self.frames, *(1,) * dims)

    def sine(self) -> Tensor:
        """An oscillation at the clip's own rate, [B, F]."""
        return torch.sin(2 * math.pi * self.params["rate"][:, None] * self._begun)

    def hop(self) -> Tensor:
        """Hops at the clip's own rate, 0..1, [B, F]."""
        return torch.sin(math.pi * self.params["rate"][:, None] * self._begun).square()
