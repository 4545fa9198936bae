"""Thumbnails of photos, from which copies are recognized (``retrieval/duplicates.py``)."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..structures.codes import THUMBNAIL_SIDE

__all__ = ["thumbnail"]

_ENOUGH = 400  # pixels of the shorter side, of which a mean is taken


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """A photo as a few grays: means over equal parts of it.

    Args:
        pixels: the photo as it was read, (H, W, C); uint8 RGB, BGR or gray, or YUV, whose first
            channel is taken.

    Returns:
        uint8 (:data:`~regiondh_d2.structures.codes.THUMBNAIL_SIDE` squared,), row by row.
    """
    if pixels.dtype != np.uint8:
        pixels = np.clip(pixels[..., :1], 0, 255).astype(np.uint8)
    step = max(1, min(pixels.shape[:2]) // _ENOUGH)
    pixels = np.ascontiguousarray(pixels[step // 2 :: step, step // 2 :: step])
    photo = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
    small = photo.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    grays = np.asarray(small, np.float32).reshape(THUMBNAIL_SIDE**2, -1).mean(axis=1)
    return np.rint(grays).astype(np.uint8)
