"""The second stage of a search: the nearest images reranked by a finer distance."""

from __future__ import annotations

import numpy as np

from ..structures.codes import CodeFileError, CodeSet
from ..structures.packed import unpack_codes
from .class_decoder import class_distances, class_probabilities, decode_class_scores
from .queries import Query

__all__ = ["RERANKINGS", "default_reranking", "fine_distances", "fine_values"]

RERANKINGS = ("activations", "features", "classes")
"""What a second stage may compare."""


def default_reranking(items: CodeSet, *, has_activations: bool) -> str:
    """What to rerank by where nothing is named: classes, or else activations.

    Args:
        items: the images that are searched.
        has_activations: whether the query, or queries, have activations.

    Raises:
        CodeFileError: the images have no ``class_weights`` and the query has no activations.
    """
    if items.class_weights is not None:
        return "classes"
    if has_activations:
        return "activations"
    raise CodeFileError(
        "rerank: the codes have no class_weights and the query has no activations: extract both "
        "again by this version, or leave the rerank out"
    )


def fine_distances(
    query: np.ndarray,
    items: CodeSet,
    rows: np.ndarray,
    by: str,
    directions: np.ndarray | None = None,
) -> np.ndarray:
    """Distances, float (R,), of a query to images, finer than Hamming distances.

    Those by classes are 1 minus a cosine, see :mod:`.class_decoder`, the others squared.

    Args:
        query: the query's activations (K,), features (D,) or class probabilities (C,).
        items: the images. The query's features are compared with their features; its activations
            with their codes, so that no activations need to be stored; its class probabilities with
            those that their codes give.
        rows: int (R,), which of them.
        by: one of :data:`RERANKINGS`.
        directions: of the images, see :func:`.class_decoder.class_distances`.
    """
    if by == "classes":
        return class_distances(query, items, rows, directions)
    if by == "features":
        values = items.column("features")[rows]
    else:
        values = unpack_codes(items.codes[rows], items.bits)
    difference = query.astype(np.float32) - values
    return np.vecdot(difference, difference)


def fine_values(query: Query, items: CodeSet, by: str) -> np.ndarray | None:
    """What of a query :func:`fine_distances` compares with images; None if the query lacks it.

    By classes these are the network's own probabilities where the query has its ``class_scores``,
    and those that its code gives otherwise.
    """
    if by == "classes":
        scores = query.class_scores
        if scores is None:
            (scores,) = decode_class_scores(query.codes, items.column("class_weights"))
        return class_probabilities(scores, items.settings)
    return query.feature if by == "features" else query.activation
