"""Retrieval by class, against ordinary evaluations of the queries of a class."""

import numpy as np
import pytest

from builders import code_set, codes_that_follow_labels
from regiondh_d2.evaluation.class_metrics import (
    class_means,
    measure_classes,
    own_class_metric,
    wrong_answer_labels,
)
from regiondh_d2.evaluation.ranking_metrics import evaluate_ranking
from regiondh_d2.structures.packed import pack_codes

BITS = 11


@pytest.fixture(scope="module")
def packed():
    query, database, *labels = codes_that_follow_labels(BITS)
    return pack_codes(query), pack_codes(database), *labels


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


def test_what_wrong_answers_show():
    query_labels = np.array([[1, 1, 0], [0, 1, 0]])
    database_labels = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 0]])
    answers = np.array([[0, 1], [2, 1]])
    # Query 0: item 0 shares class 0, item 1 is wrong. Query 1: both are wrong.
    expected = [[0, 0, 1], [1, 0, 2], [0, 0, 0]]
    assert wrong_answer_labels(answers, query_labels, database_labels).tolist() == expected


def test_classes_from_the_weakest(packed):
    """A class that no query shows is left out; one that no image shows comes last."""
    query_codes, database_codes, query_labels, database_labels = packed
    query_labels, database_labels = query_labels.copy(), database_labels.copy()
    query_labels[:, 1] = False
    database_labels[:, 2] = False
    names = ["cat", "dog", "sofa", "car"]
    query, database = (
        code_set(codes, BITS, labels=labels, class_names=names)
        for codes, labels in ((query_codes, query_labels), (database_codes, database_labels))
    )
    arguments = (query_codes, database_codes, query_labels, database_labels)
    result = evaluate_ranking(*arguments, bits=BITS, topk=9)
    found = measure_classes(
        query, database, result, 9, metrics=("MAP", "ACG"), own_metric="NDCG", answers=5
    )
    alone = own_class_metric(*arguments, bits=BITS, topk=9, metric="NDCG")
    order = ["cat", "car"] if alone[0] < alone[3] else ["car", "cat"]
    assert [one.name for one in found] == [*order, "sofa"]
    assert np.isnan(found[-1].alone)
    distances = np.unpackbits(query_codes[:, None] ^ database_codes, axis=2).sum(axis=2)
    for one in found:
        class_id = names.index(one.name)
        rows = np.flatnonzero(query_labels[:, class_id])
        assert one.queries == len(rows)
        assert one.images == database_labels[:, class_id].sum()
        for metric in ("MAP", "ACG"):
            values = result.per_query[f"{metric}@9"][rows]
            assert one.means[metric] == pytest.approx(np.nanmean(values))
        counts = dict.fromkeys(names, 0)
        for row in rows:
            for item in np.argsort(distances[row], kind="stable")[:5]:
                if not (query_labels[row] & database_labels[item]).any():
                    for other in np.flatnonzero(database_labels[item]):
                        counts[names[other]] += 1
        most = sorted((n for n in names if counts[n]), key=lambda n: -counts[n])[:3]
        assert one.wrong == [(name, counts[name]) for name in most] != []
