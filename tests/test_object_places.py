"""Whether the boxes of answers are on objects, worked out by hand and over all orders."""

from itertools import permutations

import numpy as np
import pytest

from builders import object_codes
from regiondh_d2.evaluation.object_places import (
    TrueObjects,
    expected_precisions,
    overlapped_classes,
)


def test_the_classes_that_a_detection_overlaps():
    """IoU of [0, 0, 20, 20] moved right by 5 and 7 pixels: .6 and .481."""
    square = np.array([0, 0, 20, 20], np.float32)
    shift = np.array([1, 0, 1, 0], np.float32)
    detected = object_codes(
        np.zeros((4, 8), bool),
        np.array([0, 0, 1, 2]),
        boxes=np.stack([square + 5 * shift, square + 7 * shift, square, square]),
        scores=np.ones(4, np.float32),
        classes=np.zeros(4, np.int64),
    )
    true = TrueObjects(
        image_index=np.array([0, 0, 1]),
        boxes=np.stack([square, square, square + 7 * shift]),
        classes=np.array([2, 1, 1]),
    )
    overlapped = overlapped_classes(detected, true, 3)
    # Two objects at one place; too far from them; too far; an image without objects.
    assert overlapped.tolist() == [[False, True, True], *[[False] * 3] * 3]


@pytest.mark.parametrize("seed", range(5))
def test_the_expectation_over_all_orders(seed):
    rng = np.random.default_rng(seed)
    distances, hits = rng.integers(0, 3, 7), rng.random(7) < 0.5
    counts = np.zeros((4, 2), int)
    np.add.at(counts, (distances, hits.astype(int)), 1)
    sums = []
    for order in permutations(range(7)):
        ranked = hits[sorted(order, key=distances.__getitem__)]  # sorted() is stable
        precision = ranked.cumsum() / np.arange(1, 8)
        sums.append(precision[ranked].sum())
    assert expected_precisions(counts) == pytest.approx(np.mean(sums))


def test_no_hit():
    assert expected_precisions(np.array([[2, 0], [3, 0]])) == 0
