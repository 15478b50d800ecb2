"""The last stage of drawing: particles, colours and styles, on the finished picture.

Shape legend: B clips, F frames, H x W pixels; pictures are [B, F, 3, H, W] in 0..1.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from p2e.world.tempo import Tempo

__all__ = ["grade"]

PARTICLES = 22
SWEEP_EDGE = 0.4  # width of the soft front of a sweep, frames
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def grade(picture: Tensor, tempo: Tempo) -> Tensor:
    """Applies particles, then styles, then colours."""
    if tempo.used("particles"):
        picture = _particles(picture, tempo)
    original = picture
    picture = _style(picture, _Amounts(tempo))
    picture = _colour(picture, _Amounts(tempo))
    if tempo.used("sweep"):
        size = picture.shape[-1]
        x = (torch.arange(size, device=picture.device) + 0.5) / size
        front = tempo.late_ramp[..., None, None, None] * (1 + SWEEP_EDGE)
        reached = ((front - x) / SWEEP_EDGE).clamp(0, 1)
        reached = reached * reached * (3 - 2 * reached)
        share = torch.where(tempo.value("sweep", 3) == 0, 1.0, reached)
        picture = original + (picture - original) * share
    return picture


class _Amounts:
    """Amounts on their way, [B, F, 1, 1, 1]; where a sweep carries them over the frame they are whole at once."""

    def __init__(self, tempo: Tempo) -> None:
        self.tempo = tempo
        self.ramp = torch.where(tempo.value("sweep") == 0, tempo.late_ramp, 1.0)

    def __call__(self, name: str) -> Tensor:
        return (self.tempo.params[name][:, None] * self.ramp)[..., None, None, None]


def _filtered(picture: Tensor, radius: int, passes: int = 1) -> Tensor:
    """A box blur, [..., C, H, W]."""
    flat = picture.flatten(0, 1)
    for _ in range(passes):
        flat = avg_pool2d(pad(flat, (radius,) * 4, mode="replicate"), 2 * radius + 1, stride=1)
    return flat.view_as(picture)


def _luma(picture: Tensor) -> Tensor:
    r, g, b = picture.unbind(2)
    return (LUMA[0] * r + LUMA[1] * g + LUMA[2] * b).unsqueeze(2)


def _slopes(luma: Tensor) -> tuple[Tensor, Tensor]:
    """Differences to the right and downwards over two pixels."""
    flat = pad(luma.flatten(0, 1), (1, 1, 1, 1), mode="replicate")
    right = flat[..., 1:-1, 2:] - flat[..., 1:-1, :-2]
    down = flat[..., 2:, 1:-1] - flat[..., :-2, 1:-1]
    return right.view_as(luma), down.view_as(luma)


def _mosaic(picture: Tensor, cells: int) -> Tensor:
    side = max(1, picture.shape[-1] // cells)
    flat = avg_pool2d(picture.flatten(0, 1), side)
    return interpolate(flat, size=picture.shape[-2:], mode="nearest").view_as(picture)


def _style(picture: Tensor, amount: _Amounts) -> Tensor:
    tempo = amount.tempo
    if tempo.used("blur", "glow"):
        soft = _filtered(picture, 3, passes=2)
        picture = picture + (soft - picture) * amount("blur")
        picture = picture + amount("glow") * (1 - (1 - picture) * (1 - 0.75 * soft) - picture)
    if tempo.used("mosaic"):
        picture = picture + (_mosaic(picture, 12) - picture) * amount("mosaic")
    if tempo.used("pixels"):
        picture = picture + (_mosaic(picture, 24) - picture) * amount("pixels")
    if tempo.used("poster"):
        # Two steps a channel with soft risers, so that a flat colour stays flat from frame to frame.
        scaled = picture * 2
        step = torch.floor(scaled)
        flat = (step + torch.sigmoid((scaled - step - 0.5) * 14)) / 2
        picture = picture + (flat - picture) * amount("poster")
    if tempo.used("sketch", "ink", "clay"):
        luma = _filtered(_luma(picture), 1)
        right, down = _slopes(luma)
        edge = ((right.square() + down.square() + 1e-6).sqrt() * 3.2 - 0.15).clamp(0, 1)
        if tempo.used("clay"):
            relief = _filtered(picture, 2) + 1.5 * _filtered(right + down, 1).clamp(-0.35, 0.35)
            picture = picture + (relief - picture) * amount("clay")
        if tempo.used("ink"):
            picture = picture * (1 - edge * amount("ink"))
        if tempo.used("sketch"):
            paper, line = tempo.colour("paper"), tempo.colour("line")
            sheet = paper + 0.5 * (picture - paper) * tempo.value("keep", 3)
            drawn = sheet + (line - sheet) * edge
            picture = picture + (drawn - picture) * amount("sketch")
    return picture.clamp(0, 1)


def _colour(picture: Tensor, amount: _Amounts) -> Tensor:
    tempo = amount.tempo
    if tempo.used("hue"):
        # A turn of the chroma plane about the grey axis (Rodrigues' formula).
        angle = amount("hue")
        r, g, b = picture.unbind(2)
        across = torch.stack([b - g, r - b, g - r], dim=2) / math.sqrt(3)
        mean = picture.mean(2, keepdim=True)
        picture = mean + (picture - mean) * torch.cos(angle) + across * torch.sin(angle)
    if tempo.used("saturation"):
        grey = _luma(picture)
        picture = grey + (picture - grey) * (1 + amount("saturation")).clamp(min=0)
    if tempo.used("contrast"):
        picture = 0.5 + (picture - 0.5) * torch.exp(amount("contrast"))
    picture = picture.clamp(0, 1)
    if tempo.used("tint"):
        toned = tempo.colour("tint") * (0.3 + 0.7 * _luma(picture))
        picture = picture + (toned - picture) * amount("tint")
    if tempo.used("brightness"):
        change = amount("brightness").clamp(-1, 1)
        picture = picture * (1 + change.clamp(max=0))
        picture = picture + (1 - picture) * change.clamp(min=0)
    if tempo.used("invert"):
        picture = picture + (1 - 2 * picture) * amount("invert")
    if tempo.used("vignette"):
        size = picture.shape[-1]
        axis = (torch.arange(size, device=picture.device) + 0.5) / size * 2 - 1
        rim = ((axis.square() + axis.square()[:, None]) * 0.75).clamp(0, 1)
        change = amount("vignette")
        picture = picture * (1 - rim * change.clamp(0, 1))
        picture = picture + (1 - picture) * rim * (-change).clamp(0, 1)
    if tempo.used("daynight"):
        night = tempo.value("daynight", 3) * tempo.hop()[..., None, None, None]
        toned = picture * torch.tensor([0.22, 0.28, 0.55], device=picture.device).view(1, 1, 3, 1, 1)
        picture = picture + (toned - picture) * night
    return picture.clamp(0, 1)


def _particles(picture: Tensor, tempo: Tempo) -> Tensor:
    """Soft dots on a fixed pattern, so that where they are follows from the effect alone."""
    size, device = picture.shape[-1], picture.device
    axis = (torch.arange(size, device=device) + 0.5) / size * 2 - 1
    k = torch.arange(PARTICLES, device=device, dtype=torch.float32)
    # The additive recurrence of the plastic number spreads points evenly over the square.
    x0, y0 = (0.5 + 0.7548776662 * k) % 1, (0.5 + 0.5698402910 * k) % 1
    time = tempo._begun[:, :, None]
    speed = 0.8 + 0.4 * ((0.61803398875 * k) % 1)
    span = 2.6  # positions wrap outside of the frame

    def where(start: Tensor, drift: Tensor) -> Tensor:
        return (((start * span + drift[:, None, None] * time * speed) % span) - span / 2)[..., None]

    radius = tempo.params["grain"].view(-1, 1, 1, 1).clamp(min=0.02)
    near_x = torch.exp(-((axis - where(x0, tempo.params["drift_x"])) / radius).square())
    near_y = torch.exp(-((axis - where(y0, tempo.params["drift_y"])) / radius).square())
    hue = (k * 0.38196601125) % 1
    third = torch.arange(3, device=device) / 3
    motley = 0.5 + 0.5 * torch.cos(2 * math.pi * (hue[:, None] - third))  # [K, 3]
    plain = torch.stack([tempo.params[f"grain_{c}"] for c in "rgb"], dim=1)
    colours = plain[:, None] + (motley - plain[:, None]) * tempo.params["motley"].view(-1, 1, 1)
    cover = torch.einsum("bfky,bfkx->bfyx", near_y, near_x).unsqueeze(2)
    paint = torch.einsum("bkc,bfky,bfkx->bfcyx", colours, near_y, near_x) / cover.clamp(min=1e-4)
    appear = tempo.params["particles"][:, None] * (4 * tempo._begun).clamp(max=1)
    alpha = ((2.2 * cover - 0.25).clamp(0, 1)) * appear[..., None, None, None]
    return picture + (paint - picture) * alpha
