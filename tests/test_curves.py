"""Curves, per-class values and bit statistics, each against another way to get the same number."""

import itertools
import warnings

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score, precision_score, recall_score

from regiondh_d2.evaluation.curves import (
    DistanceCounts,
    bit_statistics,
    class_means,
    count_distances,
    own_class_metric,
    precision_at,
    radius_curve,
    wrong_answer_labels,
)
from regiondh_d2.evaluation.ranking_metrics import evaluate_ranking
from regiondh_d2.structures.packed import pack_codes

BITS = 11


@pytest.fixture(scope="module")
def data():
    """Unpacked codes and labels; codes follow labels a little, and the last query has none."""
    rng = np.random.default_rng(0)
    labels = [rng.random((n, 4)) < 0.3 for n in (17, 60)]
    labels[0][-1] = False
    planes = rng.normal(size=(4, BITS))
    codes = [half @ planes + rng.normal(size=(len(half), BITS)) > 0.5 for half in labels]
    return *codes, *labels


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
                answered.append(found.any())
                recalls.append(recall_score(truth, found))
                if found.any():
                    precisions.append(precision_score(truth, found))
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
    with pytest.raises(ValueError, match="for 25 bits"):
        bit_statistics(query, 25)


def test_means_of_the_queries_that_hold_a_class():
    values = {"A": np.array([1, 0.5, np.nan, 0.2]), "B": np.array([3, 1, np.nan, 2])}
    labels = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 0]])
    means = class_means(values, labels)
    assert means["A"][:2].tolist() == pytest.approx([0.75, 0.35])
    assert means["B"][:2].tolist() == pytest.approx([2, 1.5])
    assert np.isnan([means["A"][2], means["B"][2]]).all()  # its only query is not measurable


def test_a_class_alone_is_an_ordinary_evaluation_of_its_queries(packed):
    query, database, query_labels, database_labels = packed
    query_labels, database_labels = query_labels.copy(), database_labels.copy()
    query_labels[:, 1] = False
    database_labels[:, 2] = False
    values = own_class_metric(
        query, database, query_labels, database_labels, bits=BITS, topk=9, metric="NDCG"
    )
    assert np.isnan(values).tolist() == [False, True, True, False]
    # With every other label erased the queries of other classes are not measurable.
    for class_id in (0, 3):
        mask = np.arange(4) == class_id
        result = evaluate_ranking(
            query, database, query_labels & mask, database_labels & mask, bits=BITS, topk=9
        )
        assert values[class_id] == pytest.approx(result.metrics["NDCG@9"])


def test_what_wrong_answers_show():
    query_labels = np.array([[1, 1, 0], [0, 1, 0]])
    database_labels = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 0]])
    answers = np.array([[0, 1], [2, 1]])
    # Query 0: item 0 shares class 0, item 1 is wrong. Query 1: both are wrong.
    expected = [[0, 0, 1], [1, 0, 2], [0, 0, 0]]
    assert wrong_answer_labels(answers, query_labels, database_labels).tolist() == expected


def test_bit_statistics(data):
    values = data[1].copy()
    values[:, 3], values[:, 4], values[:, 5] = True, False, ~values[:, 0]
    values[:5] = values[5:10]
    statistics = bit_statistics(pack_codes(values), BITS)
    varying = [0, 1, 2, 5, 6, 7, 8, 9, 10]
    assert statistics.ones == pytest.approx([column.sum() / 60 for column in values.T])
    # The mutual information of a variable with itself is its entropy.
    entropies = [mutual_info_score(column, column) / np.log(2) for column in values.T]
    assert statistics.entropy == pytest.approx(entropies)
    expected = np.corrcoef(values[:, varying].T.astype(float))
    assert statistics.correlation[np.ix_(varying, varying)] == pytest.approx(expected)
    assert statistics.correlation[0, 5] == pytest.approx(-1)
    assert np.isnan(statistics.correlation[[3, 4]]).all()
    assert np.isnan(statistics.correlation[:, [3, 4]]).all()
    assert np.flatnonzero(statistics.constant).tolist() == [3, 4]
    assert statistics.distinct == len({tuple(row) for row in values.tolist()}) < 60
    eigenvalues = np.linalg.eigvalsh(expected)
    assert statistics.effective_bits == pytest.approx(
        eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    )


def test_saturated_bits_and_effective_bits_at_their_ends():
    values = np.zeros((200, 6), bool)
    for bit, ones in enumerate((0, 1, 3, 197, 199, 200)):
        values[:ones, bit] = True
    saturated = bit_statistics(pack_codes(values), 6).saturated
    assert saturated.tolist() == [True, True, False, False, True, True]

    every = np.array(list(itertools.product([False, True], repeat=5)))
    assert bit_statistics(pack_codes(every), 5).effective_bits == pytest.approx(5)
    same = np.repeat(every[:, :1], 5, axis=1)
    assert bit_statistics(pack_codes(same), 5).effective_bits == pytest.approx(1)
    constant = bit_statistics(pack_codes(np.ones((3, 5), bool)), 5)
    assert constant.effective_bits == 0
    assert constant.entropy.tolist() == [0] * 5
    assert constant.distinct == 1


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


def test_a_class_alone_without_the_query_itself(packed):
    _, database, _, database_labels = packed
    itself = np.repeat(np.arange(len(database))[:, None], 2, axis=1)
    both = (database, database, database_labels, database_labels)
    found = own_class_metric(*both, bits=BITS, topk=5, exclude=itself)
    for class_id in range(database_labels.shape[1]):
        rows = np.flatnonzero(database_labels[:, class_id])
        if len(rows) < 2:
            assert np.isnan(found[class_id])
            continue
        values = []
        for row in rows:
            others = np.delete(np.arange(len(database)), row)
            values.append(
                evaluate_ranking(
                    database[[row]],
                    database[others],
                    np.ones((1, 1)),
                    database_labels[others, class_id, None],
                    bits=BITS,
                    topk=5,
                ).metrics["MAP_min@5"]
            )
        assert found[class_id] == pytest.approx(np.mean(values))
