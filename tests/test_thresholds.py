"""The calibrated distance, against a loop over all pairs."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from regiondh_d2.retrieval import thresholds
from regiondh_d2.retrieval.thresholds import calibrate_distance, calibrate_index
from regiondh_d2.structures.packed import pack_codes
from regiondh_d2.utils.errors import RegionDHError
from searching import make_items


def brute_force(bits, classes, owner, max_rate):
    """The largest distance by definition, its rate, and the number of pairs."""
    distances = [
        int((bits[i] != bits[j]).sum())
        for i, j in combinations(range(len(bits)), 2)
        if owner[i] != owner[j]
        and classes[i].any()
        and classes[j].any()
        and not (classes[i] & classes[j]).any()
    ]
    best, rate = -1, 0.0
    for distance in range(bits.shape[1] + 1):
        share = sum(d <= distance for d in distances) / len(distances)
        if share <= max_rate:
            best, rate = distance, share
    return best, rate, len(distances)


@pytest.mark.parametrize("max_rate", [0.0, 0.01, 0.2])
def test_all_pairs_against_the_definition(max_rate):
    rng = np.random.default_rng(3)
    bits = rng.random((90, 20)) < 0.4
    classes = rng.random((90, 4)) < 0.3  # some have none
    owner = rng.integers(0, 60, 90)
    found = calibrate_distance(pack_codes(bits), classes, owner, max_rate=max_rate)
    best, rate, pairs = brute_force(bits, classes, owner, max_rate)
    assert (found.distance, found.pairs) == (best, pairs)
    assert found.rate == pytest.approx(rate, abs=1e-12)
    assert found.rate <= max_rate


def test_a_sample_of_the_pairs_comes_near():
    rng = np.random.default_rng(4)
    bits = rng.random((300, 24)) < 0.5
    classes = np.eye(3, dtype=bool)[rng.integers(0, 3, 300)]
    every = calibrate_distance(pack_codes(bits), classes)
    some = calibrate_distance(pack_codes(bits), classes, max_pairs=20_000)
    assert (some.pairs, every.pairs) == (20_000, brute_force(bits, classes, range(300), 0)[2])
    assert some.distance == every.distance
    assert some.rate == pytest.approx(every.rate, abs=0.003)
    assert some == calibrate_distance(pack_codes(bits), classes, max_pairs=20_000)


def test_equal_codes_of_different_classes_leave_no_distance():
    codes = np.zeros((40, 2), np.uint8)
    classes = np.eye(2, dtype=bool)[np.arange(40) % 2]
    found = calibrate_distance(codes, classes)
    assert (found.distance, found.rate, found.pairs) == (-1, 0.0, 400)


def test_of_an_index_by_images_and_by_objects():
    items = make_items(found=70)
    found = items.instances
    seen = np.zeros((60, 3), bool)
    for image, class_id in zip(found.image_index, found.classes, strict=True):
        seen[image, class_id] = True
    bits = np.unpackbits(items.codes, axis=1)
    expected = brute_force(bits, seen, range(60), 0.01)
    image = calibrate_index(items)
    assert (image.distance, image.pairs) == (expected[0], expected[2])
    own = np.eye(3, dtype=bool)[found.classes]
    expected = brute_force(np.unpackbits(found.codes, axis=1), own, found.image_index, 0.01)
    one = calibrate_index(items, "instance")
    assert (one.distance, one.pairs) == (expected[0], expected[2])


def test_too_little_to_calibrate_on():
    items = make_items()
    with pytest.raises(RegionDHError, match="no detected objects to know classes from"):
        calibrate_index(replace(items, instances=None))
    classes = np.ones((50, 1), bool)
    with pytest.raises(RegionDHError, match="the index has 0 pairs of photos without"):
        calibrate_distance(items.codes[:50], classes)


def test_the_command_line_writes_auto_as_the_library_does():
    from regiondh_cli import legal_values

    assert legal_values.AUTO == thresholds.AUTO
