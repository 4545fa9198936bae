"""Copies of a photo as people make them: cropped, scaled down, saved again, brighter, mirrored.

:data:`COPIES` has all of them in one place, by name. A copy is the same picture to a person, so a
search for it should find the photo first.
"""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps

__all__ = ["COPIES", "JPEG_QUALITY", "KEPT", "LIGHT", "SCALE"]

KEPT = 0.8
"""The part of each side that "crop" keeps, in the middle of the photo."""
SCALE = 0.5
"""The factor of both sides of "small"."""
JPEG_QUALITY = 30
"""The quality, of 1 to 95, of "jpeg"."""
LIGHT = 1.4
"""The factor of all values of "bright"; results above 255 become 255."""


def _crop(photo: Image.Image) -> Image.Image:
    width, height = photo.size
    kept = [max(1, round(KEPT * side)) for side in (width, height)]
    left, top = (width - kept[0]) // 2, (height - kept[1]) // 2
    return photo.crop((left, top, left + kept[0], top + kept[1]))


def _small(photo: Image.Image) -> Image.Image:
    width, height = (max(1, round(SCALE * side)) for side in photo.size)
    return photo.resize((width, height), Image.Resampling.LANCZOS)


def _jpeg(photo: Image.Image) -> Image.Image:
    content = io.BytesIO()
    photo.save(content, "JPEG", quality=JPEG_QUALITY)
    return Image.open(io.BytesIO(content.getvalue())).convert("RGB")


def _bright(photo: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(photo).enhance(LIGHT)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "crop": _crop,
    "small": _small,
    "jpeg": _jpeg,
    "bright": _bright,
    "mirror": ImageOps.mirror,
}
"""By name, a function from an RGB image to its copy, an RGB image."""
