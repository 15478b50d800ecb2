"""Line charts drawn with Pillow, which p2e has already: axes, lines with a band about them, a legend.

Two kinds of chart do not need a plotting library with its half dozen dependencies, and the contact sheets beside them
are Pillow's anyway.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from p2e.errors import InputError
from p2e.files import atomic_path

__all__ = ["Chart", "Line", "ticks"]

WIDTH, HEIGHT, SCALE = 760, 460, 2  # pixels; drawn at SCALE times that and shrunk, which smooths the lines
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 62, 50
INK, GRID, PAPER = (30, 30, 30), (225, 225, 225), (255, 255, 255)
# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (0, 0, 0))
DASH = 9

Place = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """Points in data units, drawn in the order given; NaN breaks the line.

    Attributes:
        band: half width of a shaded band about each point, or empty.
        colour: index into COLOURS; None takes the next one.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    band: Sequence[float] = ()
    dashed: bool = False
    colour: int | None = None


@dataclass
class Chart:
    """A chart of lines.

    Attributes:
        x_range, y_range: of the axes; None fits the lines.
        log_y: the y axis is logarithmic; every y must then be positive.
    """

    title: str
    x_label: str
    y_label: str
    lines: list[Line] = field(default_factory=list)
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    log_y: bool = False

    def draw(self) -> Image.Image:
        """The picture.

        Raises:
            InputError: there is nothing to draw, or something not positive on a logarithmic axis.
        """
        points = [(x, y) for line in self.lines for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
        if not points:
            raise InputError(f"{self.title}: there are no points to draw; give at least one line")
        if self.log_y and min(y for _, y in points) <= 0:
            raise InputError(f"{self.title}: a value is not positive; draw it on a linear axis")
        x0, x1 = self.x_range or _fitted([x for x, _ in points])
        y0, y1 = self.y_range or _fitted([self._y(y) for _, y in points])
        if self.y_range and self.log_y:
            y0, y1 = math.log10(y0), math.log10(y1)
        beside = self._legend_width()
        canvas = Image.new("RGB", ((WIDTH + beside) * SCALE, HEIGHT * SCALE), PAPER)
        pen = ImageDraw.Draw(canvas, "RGBA")

        def place(x: float, y: float) -> tuple[float, float]:
            across = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
            down = HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)
            return across * SCALE, down * SCALE

        self._axes(pen, place, (x0, x1), (y0, y1))
        for number, line in enumerate(self.lines):
            colour = COLOURS[(number if line.colour is None else line.colour) % len(COLOURS)]
            for part in _runs(line):
                self._line(pen, [place(x, self._y(y)) for x, y, _ in part], colour, line.dashed)
                if line.band:
                    upper = [place(x, min(self._y(y + h), y1)) for x, y, h in part]
                    lower = [
                        place(x, max(y - h if not self.log_y else self._y(max(y - h, 10**y0)), y0)) for x, y, h in part
                    ]
                    pen.polygon([*upper, *reversed(lower)], fill=(*colour, 40))
        self._legend(pen)
        return canvas.resize((WIDTH + beside, HEIGHT), Image.Resampling.LANCZOS)

    def save(self, path: str | Path) -> None:
        """Writes a PNG.

        Raises:
            OutputError: it cannot be written.
        """
        picture = self.draw()
        with atomic_path(path) as temporary:
            picture.save(temporary, format="PNG")

    def _y(self, y: float) -> float:
        return math.log10(y) if self.log_y else y

    def _axes(self, pen: ImageDraw.ImageDraw, place: Place, xs: tuple[float, float], ys: tuple[float, float]) -> None:
        small, large = _font(12), _font(15)
        for value in ticks(*xs):
            (x, bottom), (_, top) = place(value, ys[0]), place(value, ys[1])
            pen.line([(x, top), (x, bottom)], GRID, SCALE)
            pen.text((x, bottom + 6 * SCALE), _number(value), INK, small, anchor="ma")
        for value in ticks(*ys):
            (left, y), (right, _) = place(xs[0], value), place(xs[1], value)
            pen.line([(left, y), (right, y)], GRID, SCALE)
            pen.text((left - 6 * SCALE, y), _number(10**value if self.log_y else value), INK, small, anchor="rm")
        (left, bottom), (right, top) = place(xs[0], ys[0]), place(xs[1], ys[1])
        pen.line([(left, top), (left, bottom), (right, bottom)], INK, 2 * SCALE)
        pen.text((left, 10 * SCALE), self.title, INK, large, anchor="la")
        pen.text(((left + right) / 2, (HEIGHT - 10) * SCALE), self.x_label, INK, small, anchor="ms")
        # Above the axis, as text along it would have to be turned.
        pen.text((left, (TOP - 8) * SCALE), self.y_label, INK, small, anchor="ls")

    def _line(
        self, pen: ImageDraw.ImageDraw, points: list[tuple[float, float]], colour: tuple[int, int, int], dashed: bool
    ) -> None:
        if not dashed:
            pen.line(points, colour, 2 * SCALE, joint="curve")
            return
        travelled = 0.0
        for (xa, ya), (xb, yb) in itertools.pairwise(points):
            length = math.hypot(xb - xa, yb - ya)
            pieces = max(1, math.ceil(length / (2 * SCALE)))
            for i in range(pieces):
                if (travelled + length * i / pieces) // (DASH * SCALE) % 2 == 0:
                    ends = [(xa + (xb - xa) * t, ya + (yb - ya) * t) for t in (i / pieces, (i + 1) / pieces)]
                    pen.line(ends, colour, 2 * SCALE)
            travelled += length

    def _legend_width(self) -> int:
        return math.ceil(max(_font(12).getlength(line.label) for line in self.lines) / SCALE) + 46

    def _legend(self, pen: ImageDraw.ImageDraw) -> None:
        """To the right of the axes, where no line passes."""
        left = (WIDTH - RIGHT + 12) * SCALE
        for number, line in enumerate(self.lines):
            y = (TOP + 10 + 18 * number) * SCALE
            colour = COLOURS[(number if line.colour is None else line.colour) % len(COLOURS)]
            self._line(pen, [(left, y), (left + 24 * SCALE, y)], colour, line.dashed)
            pen.text((left + 30 * SCALE, y), line.label, INK, _font(12), anchor="lm")


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers between low and high: steps of 1, 2 or 5 times a power of ten, `about` as many as asked."""
    if not low < high:
        raise InputError(f"an axis from {low:g} to {high:g} has no length; give it a range")
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _fitted(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = (high - low) * 0.04 or max(abs(high), 1.0) * 0.04
    return low - margin, high + margin


def _runs(line: Line) -> list[list[tuple[float, float, float]]]:
    """The stretches of a line without a gap: (x, y, half width of the band)."""
    runs: list[list[tuple[float, float, float]]] = [[]]
    for x, y, h in zip(line.x, line.y, line.band or [0.0] * len(line.x), strict=True):
        if math.isfinite(y):
            runs[-1].append((x, y, h))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * SCALE)
