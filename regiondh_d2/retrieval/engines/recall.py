"""The recall of an approximate search."""

from __future__ import annotations

import numpy as np

from ..hamming_index import HammingIndex, positive_integer
from .numpy_engine import NumpyIndex

__all__ = ["self_recall"]


def self_recall(index: HammingIndex, k: int = 100, samples: int = 200, seed: int = 0) -> float:
    """The share of a code's k nearest others that the index finds; 1 for an exact index.

    It is the mean over ``samples`` random codes of the index, compared with an exact search. Any of
    several equally far codes counts.
    """
    codes = index.codes
    k = min(positive_integer("k", k), len(codes) - 1)
    if k < 1:
        return 1.0
    rng = np.random.default_rng(seed)
    queries = codes[rng.choice(len(codes), min(samples, len(codes)), replace=False)]
    reference = NumpyIndex(index.bits)
    reference.add(codes)
    # Each query finds itself too, at distance 0.
    limit = reference.search(queries, k + 1)[0][:, -1:]
    found = (index.search(queries, k + 1)[0] <= limit).sum(axis=1) - 1
    return float(found.mean() / k)
