"""Class probabilities of images, decoded from their stored bits.

The network's image classifier is linear in the activations of H2, and a code is these activations
rounded to 0 and 1. So the classifier, stored beside the codes as ``class_weights``, tells from the
bits alone which classes the network saw in an image. Images are then compared by the cosine of
their class probabilities. This knows the network's classes and nothing else: two images of objects
that are none of these classes get probabilities that say little.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..config import parse_settings
from ..structures.codes import CodeSet

__all__ = [
    "class_directions",
    "class_distances",
    "class_probabilities",
    "class_scores",
    "decode_class_scores",
]

_ROWS = 1 << 16  # decoded at once: about 10 MB for 20 classes
_BYTES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)  # the bits of each byte


def decode_class_scores(codes: np.ndarray, class_weights: np.ndarray) -> np.ndarray:
    """The classifier's logits, float64 (N, C), of codes.

    Equal codes get equal scores to the last bit, whatever their place: a table of what each byte
    adds is summed, instead of a matrix product, whose rounding may depend on the row.

    Args:
        codes: packed uint8 (N, ceil(K / 8)).
        class_weights: float (K + 1, C), bias last.
    """
    weights = np.asarray(class_weights, np.float64)
    bits, classes = len(weights) - 1, weights.shape[1]
    padded = np.zeros((8 * codes.shape[1], classes))
    padded[:bits] = weights[:-1]
    scores = np.repeat(weights[-1:], len(codes), axis=0)
    for byte, rows in enumerate(padded.reshape(-1, 8, classes)):
        scores += (_BYTES @ rows)[codes[:, byte]]
    return scores


def class_scores(activations: np.ndarray, class_weights: np.ndarray) -> np.ndarray:
    """The classifier's logits, float64 (..., C), of activations.

    Args:
        activations: float (..., K).
        class_weights: float (K + 1, C), bias last.
    """
    return np.asarray(activations, np.float64) @ class_weights[:-1] + class_weights[-1]


def class_probabilities(scores: np.ndarray, settings: str = "") -> np.ndarray:
    """Probabilities, float64 (..., C), of logits, as the classifier's training loss reads them.

    Args:
        scores: logits (..., C).
        settings: of the code set, which tell ``MODEL.REGION_DH.IMAGE_LOSS``: "logistic" (also where
            nothing is told) gives a sigmoid a class, "softmax" a softmax over the classes.
    """
    scores = np.asarray(scores, np.float64)
    loss = parse_settings(settings).get("MODEL.REGION_DH.IMAGE_LOSS", "'logistic'")
    if loss == "'softmax'":
        powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)
    return np.exp(-np.logaddexp(0.0, -scores))  # the sigmoid, without an overflow


def class_directions(items: CodeSet) -> np.ndarray:
    """The class probabilities of all images as vectors of length 1, float64 (N, C).

    Args:
        items: the images, with ``class_weights``.

    Raises:
        CodeFileError: they have no ``class_weights``.
    """
    found = np.empty((len(items), items.column("class_weights").shape[1]))
    for part in _slices(len(items)):
        found[part] = _directions(items, part)
    return found


def class_distances(
    query: np.ndarray, items: CodeSet, rows: np.ndarray, directions: np.ndarray | None = None
) -> np.ndarray:
    """1 minus the cosine, in [0, 1], of a query's class probabilities and those of images.

    Args:
        query: the query's class probabilities (C,).
        items: the images, with ``class_weights``.
        rows: int (R,), which of them.
        directions: what :func:`class_directions` returned for the images, where many queries are
            compared with the same ones; None decodes the rows.

    Returns:
        float64 (R,).

    Raises:
        CodeFileError: the images have no ``class_weights``.
    """
    direction = _normalize(np.asarray(query, np.float64))
    found = np.empty(len(rows))
    for part in _slices(len(rows)):
        images = _directions(items, rows[part]) if directions is None else directions[rows[part]]
        found[part] = 1.0 - (images * direction).sum(axis=1).clip(max=1.0)
    return found


def _directions(items: CodeSet, rows: np.ndarray | slice) -> np.ndarray:
    scores = decode_class_scores(items.codes[rows], items.column("class_weights"))
    return _normalize(class_probabilities(scores, items.settings))


def _slices(count: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, count, _ROWS))


def _normalize(values: np.ndarray) -> np.ndarray:
    length = np.sqrt((values * values).sum(axis=-1, keepdims=True))
    return values / np.maximum(length, np.finfo(np.float64).tiny)
