"""The twelve shapes of the scenes, a class each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["SCENE_CLASSES", "object_mask", "polar"]

_SUPERSAMPLING = 4

Point = tuple[float, float]

# Each function draws one class. The generator varies its proportions, so that two objects of a
# class are hardly ever the same polygon.


class _Stencil:
    """Draws on the square [-1, 1] x [-1, 1] (y down) of a mask of `size` pixels."""

    def __init__(self, size: int) -> None:
        self.image = Image.new("L", (size, size))
        self._draw = ImageDraw.Draw(self.image)
        self._half = size / 2

    def _pixels(self, points: Sequence[Point]) -> list[Point]:
        return [((x + 1) * self._half, (y + 1) * self._half) for x, y in points]

    def polygon(self, points: Sequence[Point], fill: int = 255) -> None:
        self._draw.polygon(self._pixels(points), fill=fill)

    def disc(self, x: float, y: float, radius: float, fill: int = 255) -> None:
        self.ellipse(x, y, radius, radius, fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: int = 255) -> None:
        self._draw.ellipse(self._pixels([(x - rx, y - ry), (x + rx, y + ry)]), fill=fill)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: int = 255) -> None:
        self._draw.rectangle(self._pixels([(x0, y0), (x1, y1)]), fill=fill)


def polar(radius: float, angle: float) -> Point:
    return radius * math.cos(angle), radius * math.sin(angle)


def _star(s: _Stencil, rng: np.random.Generator) -> None:
    points = int(rng.integers(5, 7))
    inner = rng.uniform(0.36, 0.46)
    s.polygon([polar((0.95, inner)[i % 2], math.pi * i / points) for i in range(2 * points)])


def _ring(s: _Stencil, rng: np.random.Generator) -> None:
    s.disc(0, 0, 0.92)
    s.disc(0, 0, rng.uniform(0.5, 0.68), fill=0)


def _cross(s: _Stencil, rng: np.random.Generator) -> None:
    arm = rng.uniform(0.22, 0.32)
    s.box(-0.92, -arm, 0.92, arm)
    s.box(-arm, -0.92, arm, 0.92)


def _triangle(s: _Stencil, rng: np.random.Generator) -> None:
    s.polygon([(rng.uniform(-0.3, 0.3), -0.92), (0.92, 0.8), (-0.92, 0.8)])


def _crescent(s: _Stencil, rng: np.random.Generator) -> None:
    s.disc(0, 0, 0.94)
    s.disc(rng.uniform(0.4, 0.52), 0, rng.uniform(0.74, 0.82), fill=0)


def _arrow(s: _Stencil, rng: np.random.Generator) -> None:
    shaft, neck = rng.uniform(0.14, 0.22), rng.uniform(-0.05, 0.15)
    s.box(-0.95, -shaft, neck + 0.05, shaft)
    s.polygon([(neck, -0.62), (0.95, 0), (neck, 0.62)])


def _heart(s: _Stencil, rng: np.random.Generator) -> None:
    height = rng.uniform(0.9, 1.1)
    angles = [2 * math.pi * i / 60 for i in range(60)]
    s.polygon(
        [
            (
                0.92 * math.sin(t) ** 3,
                -height
                * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
                / 17,
            )
            for t in angles
        ]
    )


def _house(s: _Stencil, rng: np.random.Generator) -> None:
    eaves = rng.uniform(-0.25, -0.05)
    s.polygon([(-0.92, eaves), (0, -0.92), (0.92, eaves)])
    s.box(-0.68, eaves, 0.68, 0.88)
    door, window = rng.uniform(-0.4, -0.2), rng.uniform(0.15, 0.3)
    s.box(door, 0.3, door + 0.28, 0.88, fill=0)
    s.box(window, 0.15, window + 0.26, 0.42, fill=0)


def _spiral(s: _Stencil, rng: np.random.Generator) -> None:
    turns, width = rng.uniform(1.9, 2.4), rng.uniform(0.1, 0.13)
    for i in range(300):
        t = i / 299
        s.disc(*polar(0.06 + 0.76 * t, 2 * math.pi * turns * t), width)


def _gear(s: _Stencil, rng: np.random.Generator) -> None:
    teeth = int(rng.integers(7, 10))
    step = 2 * math.pi / teeth
    outline = []
    for i in range(teeth):
        for offset, radius in ((-0.32, 0.68), (-0.2, 0.95), (0.2, 0.95), (0.32, 0.68)):
            outline.append(polar(radius, (i + offset) * step))
    s.polygon(outline)
    s.disc(0, 0, rng.uniform(0.2, 0.3), fill=0)


def _fish(s: _Stencil, rng: np.random.Generator) -> None:
    belly = rng.uniform(0.4, 0.55)
    s.ellipse(0.2, 0, 0.74, belly)
    s.polygon([(-0.35, 0), (-0.95, -0.52), (-0.78, 0), (-0.95, 0.52)])
    s.polygon([(0.0, -belly + 0.06), (0.3, -belly - 0.22), (0.45, -belly + 0.1)])
    s.disc(0.58, -0.12, 0.09, fill=0)


def _key(s: _Stencil, rng: np.random.Generator) -> None:
    s.disc(-0.55, 0, 0.4)
    s.disc(-0.58, 0, rng.uniform(0.17, 0.22), fill=0)
    s.box(-0.22, -0.11, 0.95, 0.11)
    for x in (0.78, rng.uniform(0.42, 0.52)):
        s.box(x - 0.09, 0, x + 0.09, rng.uniform(0.34, 0.46))


_SHAPES: dict[str, Callable[[_Stencil, np.random.Generator], None]] = {
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "triangle": _triangle,
    "crescent": _crescent,
    "arrow": _arrow,
    "heart": _heart,
    "house": _house,
    "spiral": _spiral,
    "gear": _gear,
    "fish": _fish,
    "key": _key,
}
SCENE_CLASSES = tuple(_SHAPES)


def object_mask(name: str, length: int, rng: np.random.Generator) -> np.ndarray:
    """One object's opacity, float32 (h, w) in [0, 1], rotated and cropped to its extent.

    `length` is the longer side of the unrotated drawing in pixels.
    """
    stencil = _Stencil(length * _SUPERSAMPLING)
    _SHAPES[name](stencil, rng)
    image = stencil.image
    stretch = rng.uniform(0.85, 1.0)
    size = [image.width, round(image.height * stretch)]
    image = image.resize(size if rng.random() < 0.5 else size[::-1], Image.Resampling.BILINEAR)
    image = image.rotate(rng.uniform(0, 360), resample=Image.Resampling.BICUBIC, expand=True)
    image = image.resize(
        [max(1, round(side / _SUPERSAMPLING)) for side in image.size], Image.Resampling.BOX
    )
    mask = np.asarray(image, dtype=np.float32) / 255
    rows, columns = np.nonzero(mask > 0.5)
    return mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
