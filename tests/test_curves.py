"""Curves, each against another way to get the same numbers."""

import itertools
import warnings

import numpy as np
import pytest

from builders import codes_that_follow_labels
from regiondh_d2.evaluation.curves import (
    DistanceCounts,
    count_distances,
    precision_at,
    radius_curve,
)
from regiondh_d2.evaluation.ranking_metrics import evaluate_ranking
from regiondh_d2.structures.packed import pack_codes

BITS = 11


@pytest.fixture(scope="module")
def data():
    return codes_that_follow_labels(BITS)


@pytest.fixture(scope="module")
def packed(data):
    return pack_codes(data[0]), pack_codes(data[1]), *data[2:]


@pytest.fixture(scope="module")
def counts(packed):
    return count_distances(*packed, bits=BITS)


def by_hand(data):
    """Distances and relevance of all pairs."""
    query, database, query_labels, database_labels = data
    distances = np.array([[int((q != d).sum()) for d in database] for q in query])
    relevant = np.array([[bool((q & d).any()) for d in database_labels] for q in query_labels])
    return distances, relevant


@pytest.mark.parametrize("max_pairs", [1, 130, 1 << 21])
def test_counts_of_every_distance(data, packed, max_pairs):
    distances, relevant = by_hand(data)
    counts = count_distances(*packed, bits=BITS, max_pairs=max_pairs)
    assert counts.items.shape == counts.relevant.shape == (17, BITS + 1)
    for row, distance in itertools.product(range(17), range(BITS + 1)):
        at = distances[row] == distance
        assert counts.items[row, distance] == at.sum()
        assert counts.relevant[row, distance] == (at & relevant[row]).sum()
    assert counts.measurable.tolist() == relevant.any(axis=1).tolist()
    assert not counts.measurable[-1]


@pytest.mark.parametrize("size", [200, 300])
def test_far_codes_of_many_bits_and_classes_do_not_overflow(size):
    query, database = np.ones((1, size), bool), np.zeros((2, size), bool)
    counts = count_distances(pack_codes(query), pack_codes(database), query, ~database, bits=size)
    assert counts.items[0, size] == counts.relevant[0, size] == 2
    assert counts.items.sum() == 2


def test_precision_and_recall_within_a_radius(data, counts):
    distances, relevant = by_hand(data)
    curve = radius_curve(counts)
    for radius in range(BITS + 1):
        precisions, recalls, answered = [], [], []
        for found, truth in zip(distances <= radius, relevant, strict=True):
            if truth.any():
                hits = np.count_nonzero(found & truth)
                answered.append(found.any())
                recalls.append(hits / np.count_nonzero(truth))
                if found.any():
                    precisions.append(hits / np.count_nonzero(found))
        assert curve.precision[radius] == pytest.approx(np.mean(precisions))
        assert curve.recall[radius] == pytest.approx(np.mean(recalls))
        assert curve.answered[radius] == pytest.approx(np.mean(answered))
    assert curve.recall[-1] == curve.answered[-1] == 1


def test_a_radius_in_which_nothing_lies_has_no_precision():
    counts = DistanceCounts(items=np.array([[0, 3, 1]]), relevant=np.array([[0, 1, 1]]))
    curve = radius_curve(counts)
    assert np.isnan(curve.precision[0])
    assert curve.precision[1:].tolist() == pytest.approx([1 / 3, 1 / 2])
    assert curve.recall.tolist() == pytest.approx([0, 1 / 2, 1])
    assert curve.answered.tolist() == [0, 1, 1]


def test_precision_at_k_is_the_mean_over_all_orders_of_the_ties():
    """Two queries and four items: few enough orders to list."""
    distances = np.array([[0, 1, 1, 1], [2, 2, 0, 2]])
    relevant = np.array([[1, 0, 1, 0], [0, 0, 0, 1]])
    counts = np.zeros((2, 2, 3), np.int64)
    for row, item in np.ndindex(distances.shape):
        counts[:, row, distances[row, item]] += 1, relevant[row, item]
    expected = []
    for row in range(2):
        orders = [
            order
            for order in itertools.permutations(range(4))
            if np.all(np.diff(distances[row, list(order)]) >= 0)
        ]
        hits = np.mean([np.cumsum(relevant[row, list(order)]) for order in orders], axis=0)
        expected.append(hits / [1, 2, 3, 4])
    curve = precision_at(DistanceCounts(*counts), 9)
    assert curve == pytest.approx(np.mean(expected, axis=0), abs=1e-12)


def test_precision_at_k_agrees_with_the_ranking_metrics(packed, counts):
    curve = precision_at(counts, 60)
    metrics = evaluate_ranking(*packed, bits=BITS, topk=range(1, 61)).metrics
    assert curve == pytest.approx([metrics[f"P@{k}"] for k in range(1, 61)], abs=1e-12)
    assert precision_at(counts, 7) == pytest.approx(curve[:7], abs=1e-12)


def test_nothing_to_measure():
    nothing = DistanceCounts(items=np.array([[1, 1]]), relevant=np.array([[0, 0]]))
    for curve in (radius_curve, lambda counts: precision_at(counts, 2)):
        with pytest.raises(ValueError, match="nothing to measure"):
            curve(nothing)


@pytest.mark.parametrize("topk", [0, True, 1.5])
def test_top_k_must_be_a_positive_integer(counts, topk):
    with pytest.raises(ValueError, match="top k must be a positive integer"):
        precision_at(counts, topk)


def test_codes_and_labels_that_do_not_fit(packed):
    query, database, query_labels, database_labels = packed
    with pytest.raises(ValueError, match="for 25 bits"):
        count_distances(*packed, bits=25)
    with pytest.raises(ValueError, match="query labels must be of shape"):
        count_distances(query, database, query_labels[:-1], database_labels, bits=BITS)
    with pytest.raises(ValueError, match="4 label columns, the database 3"):
        count_distances(query, database, query_labels, database_labels[:, 1:], bits=BITS)


def test_excluded_pairs_are_not_counted(packed, data):
    query, database, query_labels, database_labels = packed
    rng = np.random.default_rng(9)
    out = rng.random((len(query), len(database))) < 0.1
    arguments = {"bits": BITS, "max_pairs": 100}
    whole = count_distances(*packed, **arguments)
    left = count_distances(*packed, **arguments, exclude=np.argwhere(out))
    for row in range(len(query)):
        alone = count_distances(
            query[[row]],
            database[~out[row]],
            query_labels[[row]],
            database_labels[~out[row]],
            bits=BITS,
        )
        np.testing.assert_array_equal(left.items[row], alone.items[0])
        np.testing.assert_array_equal(left.relevant[row], alone.relevant[0])
    assert whole.items.sum() - left.items.sum() == out.sum()
    # Precision at k is that of the ranking metrics, for queries that rank fewer items, too.
    found = precision_at(left, len(database))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = evaluate_ranking(
            *packed,
            bits=BITS,
            topk=[1, 7, len(database)],
            exclude=np.argwhere(out),
        ).metrics
    stops = len(found)
    assert found[0] == pytest.approx(result["P@1"])
    assert found[6] == pytest.approx(result["P@7"])
    assert found[-1] == pytest.approx(result[f"P@{len(database)}"])
    assert stops == left.items.sum(axis=1)[left.measurable].max()
