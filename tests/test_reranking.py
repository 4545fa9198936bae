"""Rankings with a second stage: against search itself, plain loops and every order of the ties."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from builders import FINGERPRINT, code_set
from regiondh_d2.evaluation.ranking_metrics import evaluate_ranking
from regiondh_d2.evaluation.reranking import evaluate_reranking, query_values, reranked_distances
from regiondh_d2.retrieval import class_decoder
from regiondh_d2.retrieval.class_decoder import decode_class_scores
from regiondh_d2.retrieval.index_folder import write_index_folder
from regiondh_d2.retrieval.queries import Query
from regiondh_d2.retrieval.second_stage import RERANKINGS
from regiondh_d2.structures.code_rows import take_rows
from regiondh_d2.structures.codes import CodeFileError
from regiondh_d2.structures.packed import pack_codes
from searching import search_index

BITS = 6
WEIGHTS = np.random.default_rng(9).normal(size=(BITS + 1, 3)).astype(np.float32)


def make_codes(seed, count, classes=3, **changes):
    rng = np.random.default_rng(seed)
    activations = rng.random((count, BITS)).astype(np.float16)
    values = {
        "labels": rng.random((count, classes)) < 0.4,
        "model_fingerprint": FINGERPRINT,
        "activations": activations,
        "features": rng.normal(size=(count, 4)).astype(np.float16),
        "class_weights": WEIGHTS,
    }
    return code_set(activations > 0.5, **(values | changes))


@pytest.mark.parametrize("by", RERANKINGS)
@pytest.mark.parametrize("rerank", [1, 7, 40, 100])
def test_the_order_is_that_of_search(tmp_path, by, rerank):
    # Without activations, by which a search orders what is at one distance.
    query, database = make_codes(0, 5), make_codes(1, 40, activations=None)
    folder = write_index_folder(tmp_path / "index", database, engine="numpy")
    values = query_values(query, database, by)
    changed = False
    for row in range(5):
        one = Query(
            "q.jpg", query.codes[row : row + 1], (), query.activations[row], query.features[row]
        )
        found = search_index(folder, one, 40, None, None).answers
        shortlist = [answer.row for answer in found]
        # Search orders anew at least as many as it answers with.
        answers = search_index(folder, one, min(rerank, 40), None, rerank, by).answers
        expected = [answer.row for answer in answers] + shortlist[rerank:]
        distances = reranked_distances(query.codes[row], values[row], database, rerank, by)
        assert distances.argsort(kind="stable").tolist() == expected
        assert distances.max() <= min(rerank, 40) + BITS
        changed |= expected != shortlist
    assert changed == (rerank > 1)


def test_the_metrics_over_all_orders_of_the_ties():
    """AP by a loop, for every order of seven images; three of them are ordered anew."""
    query, database = make_codes(2, 4), make_codes(3, 7)
    query.labels[3] = 0
    result = evaluate_reranking(query, database, [5, 7], 3, "activations")
    tied = False
    for row in range(3):
        bits = np.unpackbits(query.codes[row], count=BITS)
        database_bits = np.unpackbits(database.codes, axis=1, count=BITS)
        distances = (database_bits != bits).sum(axis=1)
        nearest = sorted(range(7), key=lambda i: (distances[i], i))[:3]
        squares = ((query.activations[row].astype(float) - database_bits) ** 2).sum(axis=1)
        head = sorted(nearest, key=lambda i: squares[i])
        relevant = database.labels @ query.labels[row] > 0
        for k in (5, 7):
            values = []
            for order in permutations(set(range(7)) - set(nearest)):
                hits = relevant[head + sorted(order, key=lambda i: distances[i])][:k]
                precision = hits.cumsum() / np.arange(1, k + 1)
                values.append((hits * precision).sum() / min(k, relevant.sum()))
            name = f"MAP_min@{k}"
            assert result.per_query[name][row] == pytest.approx(np.mean(values))
            assert result.per_query[f"{name}-optimistic"][row] == pytest.approx(max(values))
            assert result.per_query[f"{name}-pessimistic"][row] == pytest.approx(min(values))
            tied |= min(values) < max(values)
    assert tied
    for name, values in result.per_query.items():
        assert np.isnan(values[3])
        assert result.metrics[name] == pytest.approx(values[:3].mean())
    assert result.metrics["num_queries_without_relevant"] == 1


def test_names_are_those_of_a_ranking_by_codes():
    query, database = make_codes(0, 5), make_codes(1, 40)
    plain = evaluate_ranking(
        query.codes, database.codes, query.labels, database.labels, bits=BITS, topk=[3, 9]
    )
    result = evaluate_reranking(query, database, [3, 9], 1)
    assert result.metrics.keys() == plain.metrics.keys() | {"num_queries_in_database"}
    assert result.per_query.keys() == plain.per_query.keys()


@pytest.mark.parametrize(
    ("role", "name", "by", "message"),
    [
        (0, "labels", "activations", "no labels in the query codes"),
        (1, "labels", "activations", "no labels in the database codes"),
        (0, "activations", "activations", "no activations in the query codes"),
        (0, "features", "features", "no features in the query codes"),
        (1, "features", "features", "no features in the database codes"),
        (0, "activations", "classes", "no activations in the query codes"),
        (0, "activations", "both", "no activations in the query codes"),
    ],
)
def test_what_is_missing(role, name, by, message):
    sets = [make_codes(0, 5), make_codes(1, 40)]
    sets[role] = replace(sets[role], **{name: None})
    with pytest.raises(CodeFileError, match=message):
        evaluate_reranking(*sets, [3], 10, by, query_classes="activations")


def test_classes_come_from_the_bits_or_from_the_activations_of_a_query():
    query, database = make_codes(0, 5), make_codes(1, 40)
    bits = np.unpackbits(query.codes, axis=1, count=BITS)
    for values, source in ((bits, "bits"), (query.activations.astype(float), "activations")):
        scores = values @ WEIGHTS[:-1].astype(float) + WEIGHTS[-1]
        found = query_values(query, database, "classes", source)
        np.testing.assert_allclose(found, 1 / (1 + np.exp(-scores)), rtol=1e-9)
    by_bits, own = (
        evaluate_reranking(query, database, [3], 40, "classes", query_classes=source)
        for source in ("bits", "activations")
    )
    assert by_bits.metrics != own.metrics


def test_what_is_reranked_by_where_nobody_says():
    query, database = make_codes(0, 5), make_codes(1, 40)
    named = {by: evaluate_reranking(query, database, [3], 10, by).metrics for by in RERANKINGS}
    assert len({str(metrics) for metrics in named.values()}) == len(RERANKINGS)
    assert evaluate_reranking(query, database, [3], 10).metrics == named["both"]
    # One file is enough to know the matrix.
    older = replace(database, class_weights=None)
    assert evaluate_reranking(query, older, [3], 10).metrics == named["both"]
    alone = replace(query, activations=None)
    assert evaluate_reranking(alone, database, [3], 10).metrics == named["classes"]
    query = replace(query, class_weights=None)
    assert evaluate_reranking(query, older, [3], 10).metrics == named["activations"]
    with pytest.raises(CodeFileError, match="no class_weights in the database codes"):
        evaluate_reranking(query, older, [3], 10, "classes")
    with pytest.raises(CodeFileError, match="no class_weights and the query has no activations"):
        evaluate_reranking(replace(query, activations=None), older, [3], 10)


def test_the_database_is_decoded_once(monkeypatch):
    decoded = []

    def count(codes, weights):
        decoded.append(len(codes))
        return decode_class_scores(codes, weights)

    monkeypatch.setattr(class_decoder, "decode_class_scores", count)
    for by in ("classes", "both"):
        evaluate_reranking(make_codes(0, 5), make_codes(1, 40), [3], 30, by)
    assert decoded == [40, 40]


def test_progress_is_told():
    seen = []
    query, database = make_codes(0, 300), make_codes(1, 40)
    evaluate_reranking(query, database, [3], 9, progress=lambda *done: seen.append(done))
    assert len(seen) > 1
    assert seen == sorted(seen)
    assert seen[-1] == (300, 300)


@pytest.mark.parametrize("by", RERANKINGS)
@pytest.mark.parametrize("exclude_self", [False, True])
def test_the_metrics_are_those_of_unary_codes(by, exclude_self):
    """A distance d as a code of d ones, searched by a code of zeros, each query alone."""
    both, rerank, topk = make_codes(4, 60), 20, [1, 25]
    found = evaluate_reranking(both, both, topk, rerank, by, exclude_self=exclude_self)
    largest = rerank + BITS
    for row in range(60):
        rows = np.delete(np.arange(60), row if exclude_self else [])
        fine = query_values(both, both, by)[row]
        distances = reranked_distances(both.codes[row], fine, both, rerank, by, rows)
        if not (both.labels[rows] @ both.labels[row]).any():
            assert np.isnan(found.per_query["MAP@1"][row])
            continue
        alone = evaluate_ranking(
            np.zeros((1, -(-largest // 8)), np.uint8),
            pack_codes(np.arange(largest) < distances[:, None]),
            both.labels[row : row + 1],
            both.labels[rows],
            bits=largest,
            topk=topk,
        )
        for name, values in alone.per_query.items():
            assert found.per_query[name][row] == pytest.approx(values[0], abs=1e-12), name


def test_activations_of_the_database_are_not_needed():
    query, database = make_codes(0, 5), make_codes(1, 40)
    for by in ("activations", "classes", "both"):
        result = evaluate_reranking(query, replace(database, activations=None), [3], 10, by)
        assert result.metrics == evaluate_reranking(query, database, [3], 10, by).metrics


def test_codes_that_cannot_be_measured():
    query, database = make_codes(0, 5), make_codes(1, 40)
    with pytest.raises(CodeFileError, match="encode both with the same model"):
        evaluate_reranking(replace(query, model_fingerprint="e" * 64), database, [3], 10)
    query.labels[:] = 0
    with pytest.raises(ValueError, match="no query shares a label"):
        evaluate_reranking(query, database, [3], 10)


@pytest.mark.filterwarnings("ignore:top k of")
@pytest.mark.parametrize("by", RERANKINGS)
def test_without_the_query_itself(by):
    """As if each query had a database of its own, without its row."""
    both = make_codes(5, 9)
    plain = evaluate_reranking(both, both, [1, 9], 4, by)
    found = evaluate_reranking(both, both, [1, 9], 4, by, exclude_self=True)
    assert plain.metrics["num_queries_in_database"] == 9
    assert found.metrics["num_queries_in_database"] == 9
    for row in range(9):
        query, database = take_rows(both, [row]), take_rows(both, np.delete(np.arange(9), row))
        try:
            alone = evaluate_reranking(query, database, [1, 8], 4, by).per_query
        except ValueError:  # nothing relevant
            assert np.isnan(found.per_query["MAP@1"][row])
            continue
        for mine, other in (("MAP@1", "MAP@1"), ("NDCG@9", "NDCG@8"), ("P@9", "P@8")):
            assert found.per_query[mine][row] == pytest.approx(alone[other][0])
    assert plain.metrics["MAP@1"] != found.metrics["MAP@1"]
