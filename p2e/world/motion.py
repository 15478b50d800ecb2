"""Generic motion, with coarse captions: what the base is trained on.

A clip draws one to three kinds of event and random values for each, over the same parameter space as the effects. So
the base learns to move, bend, recolour, restyle, bring in and transform, and which of these a caption asks for; but
never which colour, visitor, style or direction, for captions do not say.
"""

import torch
from torch import Tensor

from p2e.world.parameters import INDEX, EffectParams
from p2e.world.scenes import Scenes
from p2e.world.sprites import NAMES, SPRITES

__all__ = ["CAPTIONS", "EVENTS", "sample_motion"]

# The events a caption can name, each in four wordings; {} is the subject.
EVENTS: dict[str, tuple[str, ...]] = {
    "still": ("{}, nothing happens", "{}, standing still", "a quiet shot of {}", "{} in a still picture"),
    "motion": ("{}, moving", "{} moves about", "a video of {} in motion", "{}, the subject is moving"),
    "camera": ("{}, the camera moves", "a moving shot of {}", "{} while the view changes", "{}, with a camera move"),
    "warp": ("{}, the picture is distorted", "{} while everything bends", "a warped view of {}", "{}, shapes bending"),
    "colour": ("{}, the colours change", "{} while the light changes", "{} in changing light", "{}, a new colour mood"),
    "style": ("{}, the style changes", "{} becoming another kind of picture", "{}, drawn anew", "{} in a new style"),
    "visit": ("{}, something comes in", "{} gets a visitor", "{} while something else appears", "{}, someone arrives"),
    "transform": (
        "{}, becoming something else", "{} changes into something", "a transformation of {}", "{} becomes a new thing"
    ),
}  # fmt: skip
SUBJECTS = ("a scene", *(f"{'an' if s.name[0] in 'aeiou' else 'a'} {s.name}" for s in SPRITES if s.kind != "prop"))
WORDINGS = 4
CAPTIONS: tuple[str, ...] = tuple(
    wording.format(subject) for subject in SUBJECTS for wordings in EVENTS.values() for wording in wordings
)

SECOND_EVENT, THIRD_EVENT = 0.4, 0.15  # how often a clip has further events, which its caption does not name


def sample_motion(
    n: int, generator: torch.Generator, device: torch.device | str = "cpu", scenes: Scenes | None = None
) -> tuple[EffectParams, Tensor]:
    """Draws what happens in `n` clips of generic motion.

    Args:
        generator: every number comes from it, on its own device.
        scenes: the clips' scenes, whose subjects the captions name; without them they say "a scene".

    Returns:
        the parameters and the index of each clip's caption in `CAPTIONS`, [n] int64.
    """
    where = generator.device
    draw = _Draw(n, generator)
    event = torch.randint(0, len(EVENTS), (n,), generator=generator, device=where)
    quiet = event == 0
    active = torch.zeros(n, len(EVENTS), dtype=torch.bool, device=where)
    active[torch.arange(n, device=where), event] = True
    for chance in (SECOND_EVENT, THIRD_EVENT):
        other = torch.randint(1, len(EVENTS), (n,), generator=generator, device=where)
        more = (draw.uniform() < chance) & ~quiet
        active[torch.arange(n, device=where), other] |= more
    on = dict(zip(EVENTS, active.unbind(1), strict=True))

    _motion(draw, on["motion"])
    _camera(draw, on["camera"])
    _warp(draw, on["warp"])
    _colour(draw, on["colour"])
    _style(draw, on["style"])
    _visit(draw, on["visit"])
    _transform(draw, on["transform"])
    draw.put("rate", draw.between(1, 3), torch.ones_like(quiet))
    draw.put("late", draw.between(0.2, 0.5), (draw.uniform() < 0.2) & ~quiet)

    start, end, ease = 0.25 * draw.uniform().square(), draw.between(0.7, 1.0), draw.uniform()
    params = EffectParams(draw.values, torch.stack([start, end, ease], dim=1))
    wording = torch.randint(0, WORDINGS, (n,), generator=generator, device=where)
    caption = event * WORDINGS + wording
    if scenes is not None:
        # Subjects are the first sprites of the atlas, in the order of SUBJECTS.
        caption = caption + (scenes.sprite[:, 0].to(where) + 1) * len(EVENTS) * WORDINGS
    return params.to(device), caption.to(device)


class _Draw:
    """Parameters being filled in."""

    def __init__(self, n: int, generator: torch.Generator) -> None:
        self.n, self.generator = n, generator
        self.values = torch.zeros(n, len(INDEX), device=generator.device)

    def uniform(self) -> Tensor:
        return torch.rand(self.n, generator=self.generator, device=self.generator.device)

    def between(self, low: float, high: float) -> Tensor:
        return low + (high - low) * self.uniform()

    def either(self, low: float, high: float) -> Tensor:
        """A size between low and high, of either sign."""
        return self.between(low, high) * torch.where(self.uniform() < 0.5, -1.0, 1.0)

    def one_of(self, count: int) -> Tensor:
        return torch.randint(0, count, (self.n,), generator=self.generator, device=self.generator.device)

    def put(self, name: str, value: Tensor, where: Tensor) -> None:
        self.values[:, INDEX[name]] = torch.where(where, value, self.values[:, INDEX[name]])

    def put_colour(self, prefix: str, where: Tensor) -> None:
        """A vivid colour: random channels, stretched so that one is high and one is low."""
        rgb = torch.stack([self.uniform() for _ in range(3)], dim=1)
        low, high = rgb.amin(1, keepdim=True), rgb.amax(1, keepdim=True)
        rgb = 0.08 + 0.9 * (rgb - low) / (high - low).clamp(min=1e-3) * (0.35 + 0.65 * self.uniform()[:, None])
        for i, channel in enumerate("rgb"):
            self.put(f"{prefix}_{channel}", rgb[:, i], where)

    def choose(self, on: Tensor, shares: tuple[float, ...], extra: float = 0.2) -> list[Tensor]:
        """For each clip one of several things by their shares, and each of the others with a small chance."""
        weights = torch.tensor(shares, device=self.values.device)
        pick = torch.multinomial(weights, self.n, replacement=True, generator=self.generator)
        return [on & ((pick == i) | (self.uniform() < extra * share / max(shares))) for i, share in enumerate(shares)]


def _motion(d: _Draw, on: Tensor) -> None:
    shift, grow, turn, flip, lean, sway, bounce, wobble, jelly, squash = d.choose(
        on, (4.0, 2.0, 2.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.5)
    )
    along = d.one_of(3)
    d.put("dx", d.either(0.2, 1.8), shift & (along != 0))
    d.put("dy", d.either(0.2, 1.7), shift & (along != 1))
    d.put("grow", torch.where(d.uniform() < 0.5, d.between(0.2, 0.85), d.between(-1.4, -0.2)), grow)
    d.put("turn", d.either(0.5, 6.6), turn)
    d.put("flip", d.either(2.5, 6.6), flip)
    d.put("lean", d.either(0.2, 0.7), lean)
    d.put("sway", d.either(0.1, 0.5), sway)
    d.put("bounce", d.between(0.1, 0.5), bounce)
    d.put("wobble", d.either(0.15, 0.7), wobble)
    d.put("jelly", d.either(0.1, 0.4), jelly)
    d.put("squash", d.either(0.3, 1.0), squash)


def _camera(d: _Draw, on: Tensor) -> None:
    zoom, roll, pan, quake, slide = d.choose(on, (3.0, 2.0, 2.0, 1.0, 1.0))
    d.put("zoom", d.either(0.25, 0.9), zoom)
    d.put("roll", d.either(0.3, 1.7), roll)
    along = d.one_of(3)
    d.put("pan_x", d.either(0.2, 0.9), pan & (along != 0))
    d.put("pan_y", d.either(0.2, 0.9), pan & (along != 1))
    d.put("quake", d.between(0.06, 0.2), quake)
    d.put("slide", d.either(0.6, 2.8), slide)


def _warp(d: _Draw, on: Tensor) -> None:
    fisheye, swirl, ripple, drip, wind = d.choose(on, (2.0, 2.0, 1.5, 1.0, 1.0))
    d.put("fisheye", torch.where(d.uniform() < 0.75, d.between(0.4, 1.2), d.between(-0.8, -0.3)), fisheye)
    d.put("swirl", d.either(1.0, 4.2), swirl)
    d.put("ripple", d.either(0.05, 0.15), ripple)
    d.put("drip", d.either(0.3, 1.0), drip)
    d.put("wind", d.either(0.3, 0.9), wind)


def _colour(d: _Draw, on: Tensor) -> None:
    table = {  # share, least, most
        "tint": (4.0, 0.3, 0.9), "brightness": (2.0, 0.2, 0.9), "saturation": (2.0, 0.4, 1.4),
        "contrast": (1.0, 0.2, 0.7), "hue": (2.0, 0.6, 3.6), "invert": (1.0, 0.7, 1.0), "vignette": (1.0, 0.4, 1.0),
        "daynight": (1.0, 0.6, 1.0), "paint": (1.5, 0.5, 1.0), "backdrop": (1.5, 0.6, 1.0),
    }  # fmt: skip
    picked = d.choose(on, tuple(share for share, _, _ in table.values()))
    signed = ("brightness", "saturation", "contrast", "hue", "vignette")
    for (name, (_, low, high)), where in zip(table.items(), picked, strict=True):
        d.put(name, d.either(low, high) if name in signed else d.between(low, high), where)
        if name in ("tint", "paint", "backdrop"):
            d.put_colour(name, where)
    d.put("sweep", torch.ones_like(d.uniform()), on & (d.uniform() < 0.12))


def _style(d: _Draw, on: Tensor) -> None:
    names = ("poster", "mosaic", "pixels", "sketch", "ink", "clay", "blur", "glow", "particles")
    picked = d.choose(on, (2.0, 1.0, 1.5, 4.0, 1.5, 1.5, 1.0, 1.0, 2.5))
    for name, where in zip(names, picked, strict=True):
        d.put(name, d.between(0.6, 1.0), where)
    sketch, particles = picked[3], picked[8]
    d.put_colour("paper", sketch)
    d.put_colour("line", sketch)
    # Half of the drawings are dark on bright paper, or bright on dark.
    dark, bright = d.between(0.0, 0.2), d.between(0.85, 1.0)
    plain, inverse = sketch & (d.uniform() < 0.4), d.uniform() < 0.35
    for channel in "rgb":
        d.put(f"paper_{channel}", torch.where(inverse, dark, bright), plain)
        d.put(f"line_{channel}", torch.where(inverse, bright, dark), plain)
    d.put("keep", d.between(0.5, 1.0), sketch & (d.uniform() < 0.4))
    d.put("grain", d.between(0.045, 0.11), particles)
    d.put("drift_x", d.either(0.1, 1.2), particles & (d.uniform() < 0.5))
    d.put("drift_y", d.either(0.5, 2.2), particles)
    d.put("motley", d.between(0.6, 1.0), particles & (d.uniform() < 0.4))
    white = particles & (d.uniform() < 0.4)
    d.put_colour("grain", particles)
    for channel in "rgb":
        d.put(f"grain_{channel}", torch.ones_like(dark), white)


def _visit(d: _Draw, on: Tensor) -> None:
    shown = {"first": on, "second": on & (d.uniform() < 0.35)}
    for slot, where in shown.items():
        d.put(f"{slot}_visitor", torch.ones_like(d.uniform()), where)
        d.put(f"{slot}_sprite", d.one_of(len(NAMES)).float(), where)
        d.put(f"{slot}_twin", torch.ones_like(d.uniform()), where & (d.uniform() < 0.1))
        edge = d.one_of(4)
        side = torch.where(d.uniform() < 0.5, -1.0, 1.0)
        d.put(f"{slot}_from_x", side, where & (edge < 3) & (edge > 0))
        d.put(f"{slot}_from_y", side, where & (edge == 0))
        # Beside the subject on the edge it came from, or over or under it; some pass through the frame.
        d.put(f"{slot}_x", torch.where(edge > 0, side * d.between(0.3, 0.7), d.either(0.0, 0.6)), where)
        d.put(f"{slot}_y", d.either(0.0, 0.5), where)
        passing = where & (edge == 1) & (d.uniform() < 0.35)
        d.put(f"{slot}_here", torch.ones_like(side), passing)
        d.put(f"{slot}_x", -1.8 * side, passing)
        d.put(f"{slot}_size", d.between(0.26, 0.7), where)
        d.put(f"{slot}_turn", d.either(0.3, 4.0), where & (d.uniform() < 0.12))
        d.put(f"{slot}_bob", d.between(0.05, 0.3), where & (d.uniform() < 0.4))
        d.put(f"{slot}_behind", torch.ones_like(side), where & (d.uniform() < 0.25))
        d.put(f"{slot}_carry", torch.ones_like(side), where & (d.uniform() < 0.3))


def _transform(d: _Draw, on: Tensor) -> None:
    swap, vanish = d.choose(on, (6.0, 1.0), extra=0.0)
    d.put("swap", torch.ones_like(d.uniform()), swap)
    d.put("swap_sprite", d.one_of(len(NAMES)).float(), swap)
    d.put("wipe", torch.where(d.uniform() < 0.5, -1.0, 1.0), swap & (d.uniform() < 0.4))
    d.put("vanish", torch.ones_like(d.uniform()), vanish)
