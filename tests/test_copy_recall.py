"""Recall of a copy's original, against every order of what is equal."""

from itertools import permutations

import numpy as np
import pytest

from builders import code_set
from regiondh_d2.evaluation.copy_recall import ORDERS, Place, place_of_original, recall
from regiondh_d2.structures.codes import CodeFileError
from regiondh_d2.structures.packed import pack_codes

BITS = 4


def make_database(rows=7, **columns):
    """Few codes, and few values of activations, so that much is equal."""
    rng = np.random.default_rng(3)
    bits = rng.random((rows, BITS)) < 0.5
    activations = np.where(bits, 0.75, 0.25) + 0.125 * (rng.random((rows, BITS)) < 0.2)
    return code_set(bits, activations=activations.astype(np.float16), **columns)


def keys_by_loops(activation, database):
    """For each order a tuple a photo, by which it is sorted."""
    keys = {order: [] for order in ORDERS}
    bits = np.unpackbits(database.codes, axis=1, count=BITS)
    for row in range(len(database)):
        distance = sum(int((a > 0.5) != b) for a, b in zip(activation, bits[row], strict=True))
        fine = sum(
            (a - float(b)) ** 2 for a, b in zip(activation, database.activations[row], strict=True)
        )
        coarse = sum((a - float(b)) ** 2 for a, b in zip(activation, bits[row], strict=True))
        keys["codes"].append((distance,))
        keys["search"].append((distance, fine))
        keys["rerank"].append((coarse, fine))
        keys["activations"].append((fine,))
    return keys


@pytest.mark.parametrize("original", range(4))
def test_recall_over_all_orders_of_equal_photos(original):
    database = make_database()
    # Powers of two, so that sums are exact in any precision.
    activation = np.array([0.75, 0.25, 0.25, 0.5 + 0.25 * (original % 2)])
    code = pack_codes(activation[None] > 0.5)[0]
    places = place_of_original(code, activation, original, database)
    tied = False
    for order, keys in keys_by_loops(activation.tolist(), database).items():
        ranks = []
        for shuffled in permutations(range(7)):
            ranking = sorted(shuffled, key=lambda row, keys=keys: keys[row])
            ranks.append(ranking.index(original))
        for k in (1, 2, 5, 7):
            expected = np.mean([rank < k for rank in ranks])
            assert places[order].recall(k) == pytest.approx(expected), (order, k)
        tied |= len(set(ranks)) > 1
    assert tied


def test_photos_of_the_same_content_are_one_photo():
    contents = np.zeros((7, 32), np.uint8)
    contents[[0, 2, 5]] = 9
    database = make_database(content_sha256=contents)
    database.codes[:], database.activations[:] = database.codes[0], database.activations[0]
    query = database.codes[0], database.activations[0]
    assert place_of_original(*query, 0, database)["activations"] == Place(0, 5)
    assert place_of_original(*query, 1, database)["activations"] == Place(0, 7)  # none is known


def test_the_mean_of_several():
    assert recall([Place(0, 1), Place(1, 2), Place(3, 1)], 2) == pytest.approx((1 + 0.5 + 0) / 3)


def test_codes_alone():
    database = make_database()
    database.activations = None
    with pytest.raises(CodeFileError, match="no activations in the database codes"):
        place_of_original(database.codes[0], np.zeros(BITS), 0, database)
