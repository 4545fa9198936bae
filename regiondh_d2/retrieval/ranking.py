"""The first answers to queries, with pairs left out: what pictures and reports show."""

from __future__ import annotations

import numpy as np

from .engines import create_index

__all__ = ["top_by_distance_then_row"]


def top_by_distance_then_row(
    query_codes: np.ndarray,
    database_codes: np.ndarray,
    topk: int,
    exclude: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest database rows of each query by Hamming distance, ties by ascending row.

    Args:
        query_codes: uint8 (Q, B), packed.
        database_codes: uint8 (N, B), packed.
        topk: how many, at most N.
        exclude: int (P, 2), pairs of a query's row and a database row that may not answer it.

    Returns:
        Rows and distances, int64 (Q, min(topk, N)) each, fewer columns where some query has fewer
        items that are not excluded.
    """
    index = create_index(8 * database_codes.shape[1], "numpy")
    index.add(database_codes)
    if exclude is None or not len(exclude):
        distances, rows = index.search(query_codes, topk)
        return rows, distances.astype(np.int64)
    most = int(np.bincount(exclude[:, 0]).max())
    distances, rows = index.search(query_codes, min(topk + most, len(database_codes)))
    out = np.isin(
        np.arange(len(rows))[:, None] * len(database_codes) + rows,
        exclude[:, 0] * len(database_codes) + exclude[:, 1],
    )
    columns = min(topk, len(database_codes) - most)
    kept = np.argsort(out, axis=1, kind="stable")[:, :columns]
    return (
        np.take_along_axis(rows, kept, axis=1),
        np.take_along_axis(distances, kept, axis=1).astype(np.int64),
    )
