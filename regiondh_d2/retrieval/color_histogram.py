"""A classical reference: ITQ codes of color histograms, without any learned feature.

ITQ is iterative quantization (Gong & Lazebnik, "Iterative quantization: a procrustean approach to
learning binary codes", CVPR 2011), as FAISS implements it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from ..data.image_reader import read_image
from ..utils.errors import MissingPackageError, RegionDHError

__all__ = ["color_histogram", "color_histograms", "itq_codes"]

_BINS = 6


def color_histogram(image: np.ndarray, bins: int = _BINS) -> np.ndarray:
    """The joint histogram of an image's three color channels, as shares of its pixels.

    Args:
        image: uint8 (H, W, 3).
        bins: bins a channel, at most 256; value v lies in bin ``v * bins // 256``.

    Returns:
        float32 (bins ** 3,) of sum 1, the last channel changing fastest.

    Raises:
        ValueError: another type or shape.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise RegionDHError(
            f"expected an image of uint8 (H, W, 3), not {image.dtype} of shape {image.shape}"
        )
    channels = image.reshape(-1, 3).astype(np.int64) * bins // 256
    cells = channels @ np.array([bins * bins, bins, 1])
    counts = np.bincount(cells, minlength=bins**3)
    return (counts / len(cells)).astype(np.float32)


def color_histograms(files: Sequence[str | os.PathLike], bins: int = _BINS) -> np.ndarray:
    """The color histograms of image files, float32 (N, bins ** 3); see :func:`color_histogram`.

    Raises:
        UnreadableImage: a file can't be read.
    """
    histograms = np.empty((len(files), bins**3), np.float32)
    for row, file in zip(histograms, files, strict=True):
        row[:] = color_histogram(read_image(file).pixels, bins)
    return histograms


def itq_codes(train: np.ndarray, *features: np.ndarray, bits: int = 48) -> tuple[np.ndarray, ...]:
    """Learn ITQ (PCA to ``bits`` dimensions, then a rotation) and encode features with it.

    The square root of the features is encoded (for histograms: the Hellinger distance), since a few
    large bins would otherwise outweigh all others.

    Args:
        train: float (N, D), not negative, to learn from.
        features: float (M, D) each, to encode.
        bits: code length, at most D.

    Returns:
        For each of ``features`` its codes, uint8 (M, ceil(bits / 8)), packed as by
        ``numpy.packbits``.

    Raises:
        ImportError: FAISS isn't installed.
        ValueError: there are fewer dimensions or fewer vectors to learn from than bits.
    """
    try:
        import faiss
    except ImportError:
        raise MissingPackageError(
            "ITQ codes need FAISS, which isn't installed: pip install faiss-cpu"
        ) from None

    if min(train.shape) < bits:
        raise RegionDHError(
            f"{bits} bits need at least {bits} vectors of {bits} dimensions to learn from, not "
            f"{train.shape[0]} of {train.shape[1]}"
        )
    # LSHt: a threshold for each bit at the median of the training set.
    index = faiss.index_factory(train.shape[1], f"ITQ{bits},LSHt")
    index.train(_root(train))
    # FAISS puts a byte's first bit lowest.
    return tuple(
        np.packbits(np.unpackbits(index.sa_encode(_root(f)), axis=1, bitorder="little"), axis=1)
        for f in features
    )


def _root(features: np.ndarray) -> np.ndarray:
    return np.sqrt(np.ascontiguousarray(features, dtype=np.float32))
