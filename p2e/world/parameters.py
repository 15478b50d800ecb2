"""The parameter space of effects: what a clip does, as one vector of end values and three times.

Every effect, and every clip of generic motion, is a point in this space, so clips of different effects share a batch.
Lengths are in half frames (the frame spans -1 to 1, y points down), angles in radians. All zeros is the still scene.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from p2e.errors import InputError
from p2e.world.sprites import sprite_id

__all__ = ["INDEX", "PARAMETERS", "TIMES", "EffectParams", "parameter_vector"]

# How a parameter varies between clips of one effect: "size" is scaled by the clip's strength, "amount" too but stays
# within 0..1, "place" and "colour" are jittered a little, "fixed" and "sprite" are the same in every clip.
PARAMETERS: dict[str, str] = {
    # the subject: shift, log growth, clockwise turn, squash (positive is flatter), turn about the vertical axis
    "dx": "size", "dy": "size", "grow": "size", "turn": "size", "squash": "size", "flip": "size", "lean": "size",
    # oscillations of the subject, `rate` cycles a clip: sideways, upwards, tilting, squashing
    "sway": "size", "bounce": "size", "wobble": "size", "jelly": "size", "rate": "fixed",
    # the subject fades out; is painted in one colour; becomes another sprite (wipe: 1 downwards, -1 upwards, 0 fade)
    "vanish": "amount", "paint": "amount", "paint_r": "colour", "paint_g": "colour", "paint_b": "colour",
    "swap": "fixed", "swap_sprite": "sprite", "wipe": "fixed",
    # all but the visitors waits until this share of the clip
    "late": "fixed",
    # two visitors: shown, sprite (or the subject's own), start and end relative to the subject, half size, turn,
    # bobbing, behind the subject, carried along with the subject's own shift
    **{
        f"{slot}_{name}": variation
        for slot in ("first", "second")
        for name, variation in {
            "visitor": "fixed", "sprite": "sprite", "twin": "fixed", "from_x": "fixed", "from_y": "fixed",
            "x": "place", "y": "place", "size": "size", "turn": "size", "bob": "size", "behind": "fixed",
            "carry": "fixed", "here": "fixed",
        }.items()
    },
    # the camera: log zoom, roll, pan, shaking
    "zoom": "size", "roll": "size", "pan_x": "size", "pan_y": "size", "quake": "size",
    # the lens, or the air: bulge, swirl, ripples, dripping, wind
    "fisheye": "size", "swirl": "size", "ripple": "size", "drip": "size", "wind": "size",
    # the background: painted in one colour, sliding past
    "backdrop": "amount", "backdrop_r": "colour", "backdrop_g": "colour", "backdrop_b": "colour", "slide": "size",
    # colours; `sweep` lets colours and styles cross the frame from left to right; day and night alternate
    "tint": "amount", "tint_r": "colour", "tint_g": "colour", "tint_b": "colour", "saturation": "size",
    "brightness": "size", "contrast": "size", "hue": "size", "invert": "amount", "vignette": "size",
    "sweep": "fixed", "daynight": "amount",
    # styles: flat colours, mosaic (cells of an eighth or a twelfth of the frame), drawing of lines on paper
    # (`keep` of the colours), ink outlines, clay, blur, glow
    "poster": "amount", "mosaic": "amount", "pixels": "amount", "sketch": "amount", "paper_r": "colour",
    "paper_g": "colour", "paper_b": "colour", "line_r": "colour", "line_g": "colour", "line_b": "colour",
    "keep": "amount", "ink": "amount", "clay": "amount", "blur": "amount", "glow": "amount",
    # particles: how many are seen, half size, drift over the clip, colour, share of other colours
    "particles": "amount", "grain": "size", "drift_x": "size", "drift_y": "size", "grain_r": "colour",
    "grain_g": "colour", "grain_b": "colour", "motley": "amount",
}  # fmt: skip
INDEX: dict[str, int] = {name: i for i, name in enumerate(PARAMETERS)}
TIMES = ("start", "end", "ease")  # shares of the clip; ease 0 is a straight ramp, 1 a smooth one


@dataclass(frozen=True)
class EffectParams:
    """What each of B clips does.

    Attributes:
        values: [B, P] float32, in the order of `PARAMETERS`; sprites as their ids.
        times: [B, 3] float32: start, end, ease.
    """

    values: Tensor
    times: Tensor

    def __len__(self) -> int:
        return self.values.shape[0]

    def __getitem__(self, name: str) -> Tensor:
        """One parameter of every clip, [B]."""
        return self.values[:, INDEX[name]]

    def to(self, device: torch.device | str) -> "EffectParams":
        return EffectParams(self.values.to(device), self.times.to(device))

    def select(self, index: Tensor | slice) -> "EffectParams":
        """The clips at `index`."""
        return EffectParams(self.values[index], self.times[index])

    @staticmethod
    def still(count: int, device: torch.device | str = "cpu") -> "EffectParams":
        """Nothing happens in any of `count` clips."""
        return EffectParams(
            torch.zeros(count, len(PARAMETERS), device=device),
            torch.tensor([0.0, 1.0, 0.5], device=device).repeat(count, 1),
        )

    @staticmethod
    def cat(parts: "list[EffectParams]") -> "EffectParams":
        return EffectParams(torch.cat([p.values for p in parts]), torch.cat([p.times for p in parts]))


def parameter_vector(parameters: Mapping[str, float | str]) -> Tensor:
    """A vector [P] from named values; sprites by name.

    Raises:
        InputError: a name is not a parameter, or a sprite is unknown.
    """
    vector = torch.zeros(len(PARAMETERS))
    for name, value in parameters.items():
        if name not in INDEX:
            raise InputError(f"{name!r} is not a parameter of effects; p2e/world/parameters.py lists them")
        vector[INDEX[name]] = sprite_id(value) if isinstance(value, str) else value
    return vector
