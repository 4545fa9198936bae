"""Random codes for an index, and what it should answer, by a sort in Python."""

import importlib.util
import os

import numpy as np

from regiondh_d2.structures.packed import pack_codes, unpack_codes

MEMORY_ENGINES = ["faiss", "numpy"]
MILVUS = os.environ.get("REGIONDH_TEST_MILVUS", "")
HAS_MILVUS = importlib.util.find_spec("pymilvus") is not None and (
    bool(MILVUS) or importlib.util.find_spec("milvus_lite") is not None
)
# Engines that keep their codes elsewhere, under a name.
STORED_ENGINES = ["shards", *(["milvus"] if HAS_MILVUS else [])]


def make_codes(rows, bits, seed=0, share=0.3):
    """Packed codes with many equal distances: few patterns, each with a few flipped bits."""
    rng = np.random.default_rng(seed)
    patterns = rng.random((20, bits)) < 0.5
    flips = rng.random((rows, bits)) < share / bits
    return pack_codes(patterns[rng.integers(0, 20, rows)] ^ flips)


def sort_pairs(queries, codes, bits, k, rows=None):
    """The oracle: distances of unpacked codes, and a sort of Python tuples."""
    rows = range(len(codes)) if rows is None else rows
    queries, codes = unpack_codes(queries, bits), unpack_codes(codes, bits)
    nearest = [
        sorted(zip(np.count_nonzero(codes != query, axis=1).tolist(), rows, strict=True))[:k]
        for query in queries
    ]
    pairs = np.array(nearest, np.int64).reshape(len(queries), -1, 2)
    return pairs[..., 0], pairs[..., 1]


def assert_answers(index, queries, k, expected):
    distances, rows = index.search(queries, k)
    assert distances.dtype == np.int32
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows, expected[1])
    np.testing.assert_array_equal(distances, expected[0])
