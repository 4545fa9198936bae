"""A map of codes: each code as a point in the plane."""

from __future__ import annotations

import numpy as np

from ..structures.codes import CodeSet
from ..structures.packed import unpack_codes
from ..utils.errors import MissingPackageError, RegionDHError

__all__ = ["code_map"]


def code_map(codes: CodeSet, method: str = "pca") -> tuple[np.ndarray, str]:
    """Map each code to a point in the plane.

    Args:
        codes: at least two codes.
        method: "pca", the two directions in which the bits vary most; or "tsne", which preserves
            neighborhoods but not distances (by scikit-learn, seeded).

    Returns:
        float64 (N, 2), and half a line that describes the map.

    Raises:
        ImportError: "tsne" without scikit-learn.
        ValueError: another method, or too few codes.
    """
    if method not in ("pca", "tsne"):
        raise RegionDHError(f"a map is made by 'pca' or 'tsne', not {method!r}")
    if len(codes) < 2:
        raise RegionDHError(f"a map needs at least two codes, not {len(codes)}")
    bits = unpack_codes(codes.codes, codes.bits).astype(np.float64)
    if method == "tsne":
        return _tsne(bits), "t-SNE of the codes (neighborhoods mean something, distances do not)"
    centered = bits - bits.mean(axis=0)
    _, scale, axes = np.linalg.svd(centered, full_matrices=False)
    axes = np.pad(axes[:2], ((0, 2 - len(axes[:2])), (0, 0)))  # a single bit has one direction
    # The sign of a direction is arbitrary: make its largest part positive, the same on every
    # machine.
    largest = axes[np.arange(2), np.abs(axes).argmax(axis=1)]
    places = centered @ (axes * np.where(largest < 0, -1, 1)[:, None]).T
    kept = np.square(scale[:2]).sum() / max(np.square(scale).sum(), np.finfo(float).tiny)
    return places, f"the two main directions of the bits, {kept:.0%} of their variance"


def _tsne(bits: np.ndarray) -> np.ndarray:
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise MissingPackageError(
            "a t-SNE map needs scikit-learn, which isn't installed: pip install scikit-learn, or "
            "use method 'pca'"
        ) from None
    perplexity = min(30.0, (len(bits) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(bits)
