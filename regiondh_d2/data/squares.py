"""Photos squashed to squares, as image encoders read them (``modeling/image_encoders.py``)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image

__all__ = ["squashed"]


def squashed(
    pixels: np.ndarray, sizes: Iterable[int], mirrored: bool = False
) -> dict[int, torch.Tensor]:
    """A photo scaled to squares. Its proportions change, and no part is cut off.

    Args:
        pixels: the photo as it was read, not scaled yet, uint8 (H, W, 3).
        sizes: the sides of the squares in pixels.
        mirrored: whether to swap left and right.

    Returns:
        For each size, uint8 (3, size, size). Pillow's bilinear filter averages when it shrinks.
    """
    photo = Image.fromarray(pixels)
    squares = {}
    for size in dict.fromkeys(sizes):
        square = np.asarray(photo.resize((size, size), Image.Resampling.BILINEAR))
        square = square[:, ::-1] if mirrored else square
        squares[size] = torch.from_numpy(np.array(square.transpose(2, 0, 1), order="C"))
    return squares
