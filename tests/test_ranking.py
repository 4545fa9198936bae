"""The first answers by distance, ties by row, with pairs left out."""

import numpy as np

from regiondh_d2.retrieval.ranking import top_by_distance_then_row
from regiondh_d2.structures.packed import pack_codes


def test_the_first_agrees_with_counting_bits_and_breaks_ties_by_row():
    rng = np.random.default_rng(0)
    query, database = rng.random((7, 12)) < 0.5, rng.random((40, 12)) < 0.5
    rows, distances = top_by_distance_then_row(pack_codes(query), pack_codes(database), 9)
    assert rows.shape == distances.shape == (7, 9)
    for q, found, at in zip(query, rows, distances, strict=True):
        ranked = sorted((int((q != d).sum()), i) for i, d in enumerate(database))[:9]
        assert list(zip(at.tolist(), found.tolist(), strict=True)) == ranked


def test_the_first_of_a_small_database():
    codes = np.array([[3], [1]], np.uint8)
    rows, distances = top_by_distance_then_row(codes[:1], codes, 5)
    assert rows.tolist() == [[0, 1]]
    assert distances.tolist() == [[0, 1]]


def test_the_first_without_excluded_rows():
    rng = np.random.default_rng(1)
    query, database = rng.random((6, 5)) < 0.5, rng.random((30, 5)) < 0.5
    out = rng.random((6, 30)) < 0.2
    rows, distances = top_by_distance_then_row(
        pack_codes(query), pack_codes(database), 8, np.argwhere(out)
    )
    for q, (found, at) in enumerate(zip(rows, distances, strict=True)):
        ranked = sorted((int((query[q] != d).sum()), i) for i, d in enumerate(database))
        ranked = [pair for pair in ranked if not out[q, pair[1]]][:8]
        assert list(zip(at.tolist(), found.tolist(), strict=True)) == ranked
