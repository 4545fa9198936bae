"""A map of codes: each code as a point in the plane."""

from __future__ import annotations

import numpy as np

from ..structures.codes import CodeSet
from ..structures.packed import unpack_codes
from ..utils.errors import RegionDHError

__all__ = ["code_map"]


def code_map(codes: CodeSet) -> tuple[np.ndarray, str]:
    """Map each code to a point in the plane, by the two directions in which the bits vary most.

    Args:
        codes: at least two codes.

    Returns:
        float64 (N, 2), and half a line that describes the map.

    Raises:
        ValueError: too few codes.
    """
    if len(codes) < 2:
        raise RegionDHError(f"a map needs at least two codes, not {len(codes)}")
    bits = unpack_codes(codes.codes, codes.bits).astype(np.float64)
    centered = bits - bits.mean(axis=0)
    _, scale, axes = np.linalg.svd(centered, full_matrices=False)
    axes = np.pad(axes[:2], ((0, 2 - len(axes[:2])), (0, 0)))  # a single bit has one direction
    # The sign of a direction is arbitrary: make its largest part positive, the same on every
    # machine.
    largest = axes[np.arange(2), np.abs(axes).argmax(axis=1)]
    places = centered @ (axes * np.where(largest < 0, -1, 1)[:, None]).T
    kept = np.square(scale[:2]).sum() / max(np.square(scale).sum(), np.finfo(float).tiny)
    return places, f"the two main directions of the bits, {kept:.0%} of their variance"
