"""A search by objects that also looks at their surroundings.

The *blended* distance of an image to a query of objects is d_object + W d_image: d_object is the
distance of the query's object to the nearest object detected in the image, by their codes (H1), or
the sum of these distances for several objects; d_image is the distance of the codes (H2) of the two
whole images. An image without any detected object counts K1, the largest distance of a code, for
each object of the query.

Equal blended distances are found to be equal: :func:`blend_keys` compares whole numbers.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from ..structures.codes import InstanceCodes
from ..structures.packed import to_words
from ..utils.errors import RegionDHError

__all__ = ["MOST_WEIGHT", "blend_keys", "check_blend", "hamming_distances", "nearest_objects"]

MOST_WEIGHT = 1000
"""The largest W: d_object decides among images of equal codes alone long before."""

_FINEST = 1_000_000  # W is taken as a fraction with a denominator of at most this


def check_blend(weight: float) -> None:
    """Check a W.

    Raises:
        RegionDHError: it is no number from 0 to :data:`MOST_WEIGHT`.
    """
    known = isinstance(weight, (int, float, np.number)) and not isinstance(weight, bool)
    if not (known and math.isfinite(weight) and 0 <= weight <= MOST_WEIGHT):
        raise RegionDHError(f"blend must be a number from 0 to {MOST_WEIGHT}, not {weight}")


def blend_keys(objects: np.ndarray, images: np.ndarray, weight: float) -> np.ndarray:
    """Whole numbers in the order of the blended distances, equal where these are equal.

    Floating-point sums may differ where the numbers they stand for don't: 1 + 0.1 x 2 and
    0 + 0.1 x 12.

    Args:
        objects: int, d_object.
        images: int of the same shape, d_image.
        weight: W, of six decimals at most; further ones are rounded.

    Returns:
        int64 of that shape.
    """
    fraction = Fraction(str(float(weight))).limit_denominator(_FINEST)
    scaled = objects.astype(np.int64) * fraction.denominator
    return scaled + images.astype(np.int64) * fraction.numerator


def hamming_distances(code: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The distances of one code to others.

    Args:
        code: uint8 (B,), packed.
        codes: uint8 (N, B).

    Returns:
        int64 (N,).
    """
    differing = to_words(codes) ^ to_words(code[None])
    return np.bitwise_count(differing).sum(axis=1, dtype=np.int64)


def nearest_objects(
    code: np.ndarray, objects: InstanceCodes, count: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The object of each image that is nearest to one of a query.

    Args:
        code: uint8 (B,), packed, of the query's object.
        objects: those detected in the images.
        count: N, how many images there are.
        allowed: bool (M,), which objects count; None for all.

    Returns:
        Its distance, int64 (N,), K1 where an image has none; and its row, int64 (N,), the first
        one at equal distances, -1 where there is none.
    """
    distances = hamming_distances(code, objects.codes)
    rows = np.arange(len(distances)) if allowed is None else np.flatnonzero(allowed)
    images, distances = objects.image_index[rows], distances[rows]
    least = np.full(count, objects.bits, np.int64)
    np.minimum.at(least, images, distances)
    nearest = np.full(count, -1, np.int64)
    # Written from the last row to the first, so that the first one stays.
    nearby = np.flatnonzero(distances == least[images])[::-1]
    nearest[images[nearby]] = rows[nearby]
    return least, nearest
