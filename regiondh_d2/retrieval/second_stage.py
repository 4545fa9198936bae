"""The second stage of a search: the nearest images reranked by a finer distance."""

from __future__ import annotations

import numpy as np

from ..structures.codes import CodeSet
from ..structures.packed import unpack_codes
from .queries import Query

__all__ = ["RERANKINGS", "fine_distances", "fine_values"]

RERANKINGS = ("activations", "features")
"""What a second stage may compare."""


def fine_distances(query: np.ndarray, items: CodeSet, rows: np.ndarray, by: str) -> np.ndarray:
    """The squared distances, float32 (R,), of a query to images, finer than Hamming distances.

    Args:
        query: the query's activations (K,) or features (D,).
        items: the images. The query's features are compared with their features; its activations
            with their codes, so that no activations need to be stored.
        rows: int (R,), which of them.
        by: one of :data:`RERANKINGS`.
    """
    if by == "features":
        values = items.column("features")[rows]
    else:
        values = unpack_codes(items.codes[rows], items.bits)
    difference = query.astype(np.float32) - values
    return np.vecdot(difference, difference)


def fine_values(query: Query, by: str) -> np.ndarray | None:
    """The query's activations (K,) or features (D,), as ``by`` names them; None if it has none."""
    return query.feature if by == "features" else query.activation
