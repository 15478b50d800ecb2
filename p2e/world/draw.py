"""Draws clips: scenes and effect parameters in, pixels out, for a whole batch at once.

Everything that moves, bends or magnifies acts on coordinates, and the background and the sprites are looked up there,
so that nothing is resampled twice and nothing falls off the edge of the picture. `p2e.world.grade` then colours and
restyles.
Edges are smooth (sprites by interpolation of premultiplied colours at two sizes, patterns by tanh).

Shape legend: B clips, F frames of a chunk, H x W pixels.
"""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from p2e.world.grade import grade
from p2e.world.parameters import EffectParams
from p2e.world.scenes import Scenes
from p2e.world.sprites import Atlas
from p2e.world.tempo import Tempo

__all__ = ["draw_clips"]

CHUNK_PIXELS = {"cuda": 16 << 20, "cpu": 1 << 19}  # pixels of all frames drawn at once: memory there, cache here


def draw_clips(scenes: Scenes, params: EffectParams | None, atlas: Atlas, frames: int = 17, size: int = 96) -> Tensor:
    """Draws every clip of a batch.

    Args:
        scenes: B scenes.
        params: what happens in each, or None for nothing: the still scene (with its sliding background, if it has one).
        atlas: the sprites, on the device of the scenes.
        frames, size: length in frames and side in pixels. Frame 0 never shows an effect.

    Returns:
        uint8 [B, F, 3, H, W].
    """
    device = scenes.sprite.device
    params = EffectParams.still(len(scenes), device) if params is None else params
    video = torch.empty(len(scenes), frames, 3, size, size, dtype=torch.uint8, device=device)
    frame_pixels = size * size
    budget = max(1, CHUNK_PIXELS.get(device.type, CHUNK_PIXELS["cpu"]) // frame_pixels)
    clips = max(1, min(len(scenes), budget // frames))
    with torch.no_grad():
        for first in range(0, len(scenes), clips):
            rows = slice(first, first + clips)
            part = _draw(scenes.select(rows), params.select(rows), atlas, frames, size)
            video[rows] = (part.clamp(0, 1) * 255).round().to(torch.uint8)
    return video


def _draw(scenes: Scenes, params: EffectParams, atlas: Atlas, frames: int, size: int) -> Tensor:
    """Clips [B, F, 3, H, W] in 0..1."""
    tempo = Tempo(params, frames)
    axis = (torch.arange(size, device=scenes.sprite.device) + 0.5) / size * 2 - 1
    y, x = (t.expand(len(scenes), frames, size, size) for t in torch.meshgrid(axis, axis, indexing="ij"))
    x, y = _camera(*_lens(x, y, tempo), tempo)
    picture = _background(scenes, tempo, x, y)
    canvas = _Canvas(picture, x, y, atlas, magnification=torch.exp(tempo.ramp("zoom")))
    for slot in ("first", "second"):
        _visitor(canvas, scenes, tempo, slot, behind=True)
    for i in (2, 1, 0):
        _subject(canvas, scenes, tempo, i)
    for slot in ("first", "second"):
        _visitor(canvas, scenes, tempo, slot, behind=False)
    return grade(canvas.picture, tempo)


def _lens(x: Tensor, y: Tensor, tempo: Tempo) -> tuple[Tensor, Tensor]:
    """Screen coordinates bent by lens and air."""
    radius2 = x * x + y * y
    sx, sy = x, y
    if tempo.used("fisheye"):
        k = 1 + 0.6 * tempo.ramp("fisheye", 2) * (radius2 - 1)
        x, y = x * k, y * k
    if tempo.used("swirl"):
        turn = tempo.ramp("swirl", 2) * (1 - radius2 / 2).clamp(min=0).square()
        x, y = torch.cos(turn) * x - torch.sin(turn) * y, torch.sin(turn) * x + torch.cos(turn) * y
    if tempo.used("ripple"):
        amplitude, phase = tempo.ramp("ripple", 2), tempo.phase(2.0, 2)
        x, y = x + amplitude * torch.sin(6 * sy + phase), y + amplitude * torch.sin(5 * sx + phase)
    if tempo.used("drip"):
        y = y - tempo.ramp("drip", 2) * (0.55 + 0.45 * torch.sin(7 * sx + 1))
    if tempo.used("wind"):
        gust = 0.75 + 0.25 * torch.cos(tempo.phase(2.0, 2) + 3 * sy)
        x = x - tempo.ramp("wind", 2) * gust * (0.5 - 0.5 * sy)
    return x, y


def _camera(x: Tensor, y: Tensor, tempo: Tempo) -> tuple[Tensor, Tensor]:
    """Where in the world the camera sees each point of the screen."""
    if tempo.used("zoom"):
        scale = torch.exp(-tempo.ramp("zoom", 2))
        x, y = x * scale, y * scale
    if tempo.used("roll"):
        roll = -tempo.ramp("roll", 2)
        x, y = torch.cos(roll) * x - torch.sin(roll) * y, torch.sin(roll) * x + torch.cos(roll) * y
    if tempo.used("pan_x", "pan_y"):
        x, y = x + tempo.ramp("pan_x", 2), y + tempo.ramp("pan_y", 2)
    if tempo.used("quake"):
        shake = tempo.value("quake", 2)
        x, y = x + shake * torch.sin(tempo.phase(3.0, 2)), y + shake * torch.sin(tempo.phase(4.0, 2))
    return x, y


def _background(scenes: Scenes, tempo: Tempo, x: Tensor, y: Tensor) -> Tensor:
    """[B, F, 3, H, W]: two waves, a ramp and a disc mix two colours; a third shades the lower part."""

    def column(t: Tensor) -> Tensor:
        return t.view(-1, 1, 1, 1)

    if tempo.used("slide"):
        x = x + tempo.ramp("slide", 2)
    moved = x - column(scenes.drift) * tempo.u.view(1, -1, 1, 1)
    frequency1, frequency2, between, share1, share2, ramp, disc, sharpness = map(column, scenes.pattern.unbind(1))
    angle = column(scenes.angle)
    phase1, phase2 = map(column, scenes.phase.unbind(1))
    along = torch.cos(angle) * moved + torch.sin(angle) * y
    across = torch.cos(angle + between) * moved + torch.sin(angle + between) * y
    field = share1 * torch.sin(frequency1 * along + phase1) + share2 * torch.sin(frequency2 * across + phase2)
    field = field + ramp * along + disc * (0.8 - (moved * moved + y * y).clamp(max=3))
    mix = (0.5 + 0.5 * torch.tanh(sharpness * field)).unsqueeze(2)
    light, dark, shade = (c.view(-1, 1, 3, 1, 1) for c in scenes.colours.unbind(1))
    picture = dark + (light - dark) * mix
    picture = picture + (shade - picture) * (0.3 + 0.3 * torch.tanh(1.2 * y)).unsqueeze(2)
    if tempo.used("backdrop"):
        picture = picture + tempo.ramp("backdrop", 3) * (tempo.colour("backdrop") - picture) * 0.85
    return picture


class _Canvas:
    """A picture being built, with the world coordinates of its pixels."""

    def __init__(self, picture: Tensor, x: Tensor, y: Tensor, atlas: Atlas, magnification: Tensor) -> None:
        self.picture, self.x, self.y, self.atlas, self.magnification = picture, x, y, atlas, magnification

    def lookup(self, rows: Tensor, sprite: Tensor, sx: Tensor, sy: Tensor, half_size: Tensor) -> Tensor:
        """Premultiplied sprite pixels [R, F, 4, H, W] at sprite coordinates sx, sy [R, F, H, W] in -1..1."""
        r, f, h, w = sx.shape
        grid = torch.stack([sx, sy], -1).reshape(r, f * h, w, 2)
        pixels = half_size * self.magnification[rows] * h  # on screen, a side of the cell
        # Between the two sizes of the atlas as between two levels of a mip map: 1 takes the small one.
        level = ((64 - pixels) / 32).clamp(0, 1).repeat_interleave(h, 1).view(r, 1, f * h, 1)
        large = grid_sample(self.atlas.images[sprite], grid, align_corners=False)
        small = grid_sample(self.atlas.small[sprite], grid, align_corners=False)
        return torch.lerp(large, small, level).view(r, 4, f, h, w).transpose(1, 2)

    def blend(self, rows: Tensor, layer: Tensor) -> None:
        """Lays premultiplied pixels [R, F, 4, H, W] over the clips `rows`."""
        self.picture[rows] = self.picture[rows] * (1 - layer[:, :, 3:]) + layer[:, :, :3]


def _place(
    canvas: _Canvas, rows: Tensor, x: Tensor, y: Tensor, width: Tensor, height: Tensor, turn: Tensor, lean: Tensor
) -> tuple[Tensor, Tensor]:
    """Sprite coordinates [R, F, H, W] of a sprite at x, y with half sides width, height; all [R, F]."""

    def pixels(t: Tensor) -> Tensor:
        return t[..., None, None]

    px, py = canvas.x[rows] - pixels(x), canvas.y[rows] - pixels(y)
    cos, sin = pixels(torch.cos(turn)), pixels(torch.sin(turn))
    rx, ry = cos * px + sin * py, cos * py - sin * px
    ry = ry / pixels(height)
    return rx / pixels(width) + pixels(lean) * (ry - 1), ry


def _subject(canvas: _Canvas, scenes: Scenes, tempo: Tempo, i: int) -> None:
    """The subject (i = 0) or one of its companions; all of them undergo the same effect."""
    rows = scenes.shown[:, i].nonzero().squeeze(1)
    if not len(rows):
        return
    t = tempo.rows(rows)
    size = scenes.size[rows, i, None] * torch.exp(t.late("grow"))
    squash = t.late("squash") + t.value("jelly") * t.sine()
    width, height = size * torch.exp(0.6 * squash), size * torch.exp(-squash)
    facing = torch.cos(t.late("flip"))
    width = width * torch.where(facing < 0, facing.clamp(max=-0.05), facing.clamp(min=0.05))
    x = scenes.centre[rows, i, 0, None] + t.late("dx") + t.value("sway") * t.sine()
    # A squashed subject stays on its feet.
    y = scenes.centre[rows, i, 1, None] + t.late("dy") - t.value("bounce") * t.hop() + (size - height)
    turn = t.late("turn") + t.value("wobble") * t.sine()
    sx, sy = _place(canvas, rows, x, y, width, height, turn, t.late("lean"))
    layer = canvas.lookup(rows, scenes.sprite[rows, i], sx, sy, torch.minimum(width.abs(), height))
    if tempo.used("swap"):
        other = canvas.lookup(rows, t.sprite("swap_sprite"), sx, sy, torch.minimum(width.abs(), height))
        done, wipe = t.late_ramp[..., None, None], t.value("wipe")[..., None, None]
        edge = ((done * 2.6 - 1.3 - sy * wipe) / 0.3 * 0.5 + 0.5).clamp(0, 1)
        share = (t.value("swap")[..., None, None] * torch.where(wipe == 0, done, edge)).unsqueeze(2)
        layer = layer + (other - layer) * share
    if tempo.used("paint"):
        paint = t.colour("paint") * layer[:, :, 3:] * (0.55 + 0.45 * layer[:, :, :3].mean(2, keepdim=True))
        rgb = layer[:, :, :3] + (paint - layer[:, :, :3]) * t.late("paint")[..., None, None, None]
        layer = torch.cat([rgb, layer[:, :, 3:]], dim=2)
    if tempo.used("vanish"):
        layer = layer * (1 - t.late("vanish"))[..., None, None, None]
    canvas.blend(rows, layer)


def _visitor(canvas: _Canvas, scenes: Scenes, tempo: Tempo, slot: str, behind: bool) -> None:
    """Someone or something that comes in and takes a place relative to the subject."""
    if not tempo.used(f"{slot}_visitor"):
        return
    shown = (tempo.params[f"{slot}_visitor"] != 0) & ((tempo.params[f"{slot}_behind"] != 0) == behind)
    rows = shown.nonzero().squeeze(1)
    if not len(rows):
        return
    t = tempo.rows(rows)
    arrived = t.visit_ramp
    cx, cy = scenes.centre[rows, 0, 0, None], scenes.centre[rows, 0, 1, None]
    # `here` places it in the frame, else beside the subject but inside the frame; `carry` adds the subject's own shift.
    here = t.value(f"{slot}_here")
    end_x = torch.where(here == 0, cx, 0.0) + t.value(f"{slot}_x")
    end_y = torch.where(here == 0, cy, 0.0) + t.value(f"{slot}_y")
    passes = (end_x.abs() > 1.3) | (end_y.abs() > 1.3)
    end_x = torch.where(passes, end_x, end_x.clamp(-0.74, 0.74))
    end_y = torch.where(passes, end_y, end_y.clamp(-0.74, 0.74))
    from_x, from_y = t.value(f"{slot}_from_x"), t.value(f"{slot}_from_y")
    half = t.value(f"{slot}_size")
    outside = 1.05 + 1.4 * half  # so far out that no corner of it is seen at any turn
    start_x = torch.where(from_x == 0, end_x, from_x * outside)
    start_y = torch.where(from_y == 0, end_y, from_y * outside)
    carry = t.value(f"{slot}_carry")
    x = start_x + (end_x - start_x) * arrived + carry * t.late("dx")
    y = start_y + (end_y - start_y) * arrived + carry * t.late("dy") - t.value(f"{slot}_bob") * t.hop()
    # One that comes from nowhere grows on the spot.
    grows = (from_x == 0) & (from_y == 0)
    half = half * torch.where(grows, arrived, 1.0).clamp(min=0.02)
    sx, sy = _place(canvas, rows, x, y, half, half, t.ramp(f"{slot}_turn"), torch.zeros_like(half))
    twin = tempo.params[f"{slot}_twin"][rows] != 0
    sprite = torch.where(twin, scenes.sprite[rows, 0], t.sprite(f"{slot}_sprite"))
    layer = canvas.lookup(rows, sprite, sx, sy, half)
    canvas.blend(rows, layer * torch.where(grows, (4 * arrived).clamp(max=1), 1.0)[..., None, None, None])
