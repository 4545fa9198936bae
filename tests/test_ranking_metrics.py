"""Ranking metrics against oracles: every order of the ties, plain sorting, other libraries.

The tests import the other libraries, which takes seconds: every worker imports this file.
"""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch

from regiondh_d2.evaluation.ranking_metrics import (
    METRICS,
    TIE_ORDERS,
    evaluate_distances,
    evaluate_ranking,
)


def unpacked_distances(query, database, bits):
    a = np.unpackbits(query, axis=1, count=bits).astype(int)
    b = np.unpackbits(database, axis=1, count=bits).astype(int)
    return np.abs(a[:, None] - b[None]).sum(-1)


def plain_metrics(shared, k):
    """The definitions, one ranking per row: ``shared`` (rankings, N) in rank order."""
    n = shared.shape[1]
    k = min(k, n)
    top = shared[:, :k].astype(float)
    ranks = np.arange(1, k + 1)
    relevant = top > 0
    total = (shared > 0).sum(1)
    hits = relevant.sum(1)
    ap = (relevant * np.cumsum(relevant, 1) / ranks).sum(1)
    wap = (relevant * np.cumsum(top, 1) / ranks).sum(1)
    ideal = -np.sort(-shared, axis=1)[:, :k]
    discount = np.log2(ranks + 1)
    return {
        "MAP": ap / np.maximum(hits, 1),
        "MAP_min": ap / np.minimum(total, k),
        "MAP_all": ap / total,
        "WMAP": wap / np.maximum(hits, 1),
        "ACG": top.sum(1) / k,
        "NDCG": ((2**top - 1) / discount).sum(1) / ((2.0**ideal - 1) / discount).sum(1),
        "P": hits / k,
    }


def all_tie_orders(distances):
    groups = [np.flatnonzero(distances == d) for d in np.unique(distances)]
    for parts in itertools.product(*map(itertools.permutations, groups)):
        yield list(itertools.chain(*parts))


def random_case(rng, queries, items, bits, classes, density=0.4):
    def codes(n):
        return np.packbits(rng.random((n, bits)) < 0.5, axis=1)

    def labels(n):
        return (rng.random((n, classes)) < density).astype(np.uint8)

    return codes(queries), codes(items), labels(queries), labels(items)


@pytest.mark.parametrize("first", range(0, 150, 10))
def test_brute_force_over_all_orders(first):
    for seed in range(first, first + 10):
        check_all_orders(seed)


def check_all_orders(seed):
    rng = np.random.default_rng(seed)
    items, bits = int(rng.integers(1, 8)), int(rng.integers(1, 5))
    query, database, query_labels, database_labels = random_case(rng, 3, items, bits, 3, 0.5)
    query_labels[0, 0] = database_labels[0, 0] = 1
    cutoffs = list(range(1, items + 1))
    shared = query_labels.astype(int) @ database_labels.T
    result = evaluate_ranking(
        query, database, query_labels, database_labels, bits=bits, topk=cutoffs
    )
    distances = unpacked_distances(query, database, bits)
    for q in range(3):
        if not shared[q].any():
            assert all(np.isnan(values[q]) for values in result.per_query.values())
            continue
        orders = np.array(list(all_tie_orders(distances[q])))
        in_row_order = np.argsort(distances[q], kind="stable")[None]
        expected = {}
        for k in cutoffs:
            stable = plain_metrics(shared[q][in_row_order], k)
            for metric, values in plain_metrics(shared[q][orders], k).items():
                name = f"{metric}@{k}"
                expected[name] = values.mean()
                expected[f"{name}-optimistic"] = values.max()
                expected[f"{name}-pessimistic"] = values.min()
                expected[f"{name}-index_order"] = stable[metric][0]
        found = {name: result.per_query[name][q] for name in expected}
        assert found == pytest.approx(expected, abs=1e-12), f"seed {seed}, query {q}"


@pytest.mark.parametrize("max_pairs", [1, 37, 1000, 1 << 21])
def test_index_order_and_blocks_match_a_plain_stable_sort(max_pairs):
    rng = np.random.default_rng(1)
    query, database, query_labels, database_labels = random_case(rng, 12, 90, 70, 5, 0.3)
    query[:, :8] = 0  # leaves 6 bits that differ, so that ties are long
    database[:, :8] = 0
    result = evaluate_ranking(
        query,
        database,
        query_labels,
        database_labels,
        bits=70,
        topk=[1, 20, 90],
        max_pairs=max_pairs,
    )
    shared = query_labels.astype(int) @ database_labels.T
    order = np.argsort(unpacked_distances(query, database, 70), axis=1, kind="stable")
    ranked = np.take_along_axis(shared, order, axis=1)
    keep = shared.any(axis=1)
    for k in (1, 20, 90):
        for metric, values in plain_metrics(ranked[keep], k).items():
            name = f"{metric}@{k}-index_order"
            np.testing.assert_allclose(result.per_query[name][keep], values, atol=1e-12)
            assert result.metrics[name] == pytest.approx(values.mean(), abs=1e-12)
    whole = evaluate_ranking(
        query, database, query_labels, database_labels, bits=70, topk=[1, 20, 90]
    )
    assert whole.metrics == pytest.approx(result.metrics, abs=1e-12)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("max_pairs", [1, 1 << 21])
def test_excluded_items_are_as_if_the_database_lacked_them(seed, max_pairs):
    """Each query alone, over all orders of the ties of what is left to it."""
    rng = np.random.default_rng(1000 + seed)
    items, bits = int(rng.integers(1, 7)), int(rng.integers(1, 4))
    case = random_case(rng, 4, items, bits, 3, 0.5)
    query, database, query_labels, database_labels = case
    query_labels[0, 0] = database_labels[0, 0] = 1
    out = rng.random((4, items)) < 0.35
    out[0, 0] = False
    out[3] = True  # nothing is left
    cutoffs = list(range(1, items + 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of cut-offs above what is left
        result = evaluate_ranking(
            *case,
            bits=bits,
            topk=cutoffs,
            exclude=rng.permutation(np.argwhere(out)),
            max_pairs=max_pairs,
        )
    distances = unpacked_distances(query, database, bits)
    shared = query_labels.astype(int) @ database_labels.T
    for q, k in itertools.product(range(4), cutoffs):
        mine, left = shared[q][~out[q]], distances[q][~out[q]]
        if not mine.any():
            assert all(np.isnan(values[q]) for values in result.per_query.values())
            continue
        orders = np.array(list(all_tie_orders(left)))
        stable = plain_metrics(mine[np.argsort(left, kind="stable")[None]], k)
        for metric, values in plain_metrics(mine[orders], k).items():
            expected = {
                "": values.mean(),
                "-optimistic": values.max(),
                "-pessimistic": values.min(),
                "-index_order": stable[metric][0],
            }
            for order, value in expected.items():
                name = f"{metric}@{k}{order}"
                assert result.per_query[name][q] == pytest.approx(value, abs=1e-12), name
    without = [not mine[~row].any() for mine, row in zip(shared, out, strict=True)]
    assert result.metrics["num_queries_without_relevant"] == sum(without)


def test_random_codes_against_themselves():
    """Every code finds itself at distance 0; without that, chance is what is left."""
    rng = np.random.default_rng(3)
    codes = np.packbits(rng.random((600, 48)) < 0.5, axis=1)
    labels = (rng.random((600, 5)) < 0.2).astype(np.uint8)
    labels[:, 0] |= ~labels.any(axis=1)
    given = {"bits": 48, "topk": [1, 50]}
    plain = evaluate_ranking(codes, codes, labels, labels, **given).metrics
    assert plain["P@1"] == 1
    itself = np.repeat(np.arange(600)[:, None], 2, axis=1)
    found = evaluate_ranking(codes, codes, labels, labels, exclude=itself, **given).metrics
    relevant = labels.astype(int) @ labels.T > 0
    chance = (relevant.sum() - 600) / (600 * 599)
    assert found["P@1"] == pytest.approx(chance, abs=0.06)
    assert found["P@50"] == pytest.approx(chance, abs=0.01)


def test_more_than_255_bits_with_excluded_items():
    database = np.packbits(np.tri(256, 255, -1, dtype=bool), axis=1)  # distances 0 to 255
    labels = np.ones((256, 1))
    found = evaluate_ranking(
        database[:1],
        database,
        labels[:1],
        np.eye(256)[:, 1:2] + np.eye(256)[:, 255:],
        bits=255,
        topk=255,
        exclude=np.array([[0, 0]]),
    ).metrics
    assert found["MAP@255"] == pytest.approx((1 + 2 / 255) / 2)


def test_a_cut_off_above_what_is_left_warns():
    rng = np.random.default_rng(8)
    case = random_case(rng, 3, 9, 4, 3, 0.9)
    with pytest.warns(UserWarning, match=r"top k of 9 is above the database's 8 items other than"):
        evaluate_ranking(*case, bits=4, topk=9, exclude=np.array([[1, 4]]))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([[0, 3]], "have a row that the queries or the database lack"),
        ([[-1, 0]], "have a row that the queries or the database lack"),
        ([[0, 1], [0, 1]], "have a pair twice"),
        ([0, 1], r"integers of shape \(P, 2\)"),
        ([[0.0, 1.0]], r"integers of shape \(P, 2\)"),
    ],
)
def test_pairs_that_are_none(pairs, message):
    codes, labels = np.zeros((3, 1), np.uint8), np.ones((3, 1))
    with pytest.raises(ValueError, match=message):
        evaluate_ranking(codes, codes, labels, labels, bits=8, topk=1, exclude=np.array(pairs))


# --------------------------------------------------------------------------------------------------
# Distances in place of codes


def unary_codes(distances, largest):
    """Codes whose Hamming distances to a code of zeros are these: a distance d is d ones."""
    return np.packbits(np.arange(largest) < distances[..., None], axis=-1)


@pytest.mark.parametrize("largest", [6, 300])
@pytest.mark.parametrize("max_pairs", [37, 1 << 21])
def test_distances_give_what_unary_codes_give(largest, max_pairs):
    """Each query alone, since each has its own codes of the database."""
    rng = np.random.default_rng(largest)
    _, _, query_labels, database_labels = random_case(rng, 9, 60, 8, 4, 0.3)
    query_labels[4] = 0
    distances = rng.integers(0, largest + 1, (9, 60))
    out = rng.random((9, 60)) < 0.2
    out[5] = True
    given = {"topk": [1, 20, 60], "max_pairs": max_pairs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of cut-offs above what is left
        results = [
            evaluate_distances(
                found,
                query_labels,
                database_labels,
                largest=largest,
                exclude=np.argwhere(out),
                **given,
            )
            for found in (distances, distances.astype(np.uint16), lambda rows: distances[rows])
        ]
        for row in range(9):
            left = ~out[row]
            if not (database_labels[left] @ query_labels[row]).any():
                assert np.isnan(results[0].per_query["MAP@1"][row])
                continue
            alone = evaluate_ranking(
                np.zeros((1, -(-largest // 8)), np.uint8),
                unary_codes(distances[row, left], largest),
                query_labels[row : row + 1],
                database_labels[left],
                bits=largest,
                **given,
            )
            for name, values in alone.per_query.items():
                assert results[0].per_query[name][row] == pytest.approx(values[0], abs=1e-12), name
    for other in results[1:]:
        assert other.metrics == results[0].metrics
    without = np.isnan(results[0].per_query["MAP@1"])
    assert without[[4, 5]].all()
    assert results[0].metrics["num_queries_without_relevant"] == without.sum() < 9


@pytest.mark.parametrize("seed", range(20))
def test_distances_over_all_orders(seed):
    rng = np.random.default_rng(seed)
    items = int(rng.integers(1, 8))
    distances = rng.integers(0, 4, (2, items)) * 100
    _, _, query_labels, database_labels = random_case(rng, 2, items, 8, 3, 0.5)
    query_labels[:, 0] = database_labels[0, 0] = 1
    cutoffs = list(range(1, items + 1))
    result = evaluate_distances(distances, query_labels, database_labels, topk=cutoffs)
    shared = query_labels.astype(int) @ database_labels.T
    for q, k in itertools.product(range(2), cutoffs):
        orders = np.array(list(all_tie_orders(distances[q])))
        for metric, values in plain_metrics(shared[q][orders], k).items():
            name = f"{metric}@{k}"
            assert result.per_query[name][q] == pytest.approx(values.mean(), abs=1e-12), name
            assert result.per_query[f"{name}-optimistic"][q] == pytest.approx(values.max())


def test_distances_are_not_written_to():
    distances = np.arange(12).reshape(2, 6)
    labels = np.ones((6, 1))
    evaluate_distances(distances, labels[:2], labels, topk=5, exclude=np.array([[0, 0], [1, 0]]))
    assert distances.ravel().tolist() == list(range(12))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"distances": np.zeros((2, 4), int)},
            r"integers of shape \(2, 3\), not int64 \(2",
        ),
        ({"distances": np.zeros((2, 3))}, r"must be integers of shape \(2, 3\), not float64"),
        ({"distances": np.full((2, 3), -1)}, "must be 0 or more, and one is -1"),
        ({"distances": np.full((2, 3), 9), "largest": 8}, "must be from 0 to 8, and one is 9"),
        (
            {"distances": lambda rows: np.full((2, 3), 9)},
            "a function of distances needs",
        ),
        ({"distances": lambda rows: np.full((2, 3), 9), "largest": 8}, "from 0 to 8, and one is 9"),
        ({"distances": lambda rows: np.zeros(3, int), "largest": 8}, r"not int64 \(3,\)"),
        ({"query_labels": np.ones((0, 2))}, "there are no queries"),
        ({"database_labels": np.ones((0, 2))}, "there are no database items"),
        ({"query_labels": np.ones((2, 3))}, "both need the same classes"),
        ({"database_labels": np.zeros((3, 2))}, "nothing to measure"),
    ],
)
def test_distances_that_are_none(change, message):
    arguments = {
        "distances": np.ones((2, 3), int),
        "query_labels": np.ones((2, 2)),
        "database_labels": np.ones((3, 2)),
        "topk": 2,
    }
    with pytest.raises(ValueError, match=message) as error:
        evaluate_distances(**(arguments | change))
    assert "\n" not in str(error.value)


def tie_free_case(items=40, classes=4):
    """One query whose distances to the database are all different, and more than 255 bits."""
    rng = np.random.default_rng(2)
    bits = 300
    distances = rng.permutation(bits)[:items]
    database = np.packbits(np.arange(bits)[None] < distances[:, None], axis=1)
    query = np.zeros((1, database.shape[1]), np.uint8)
    query_labels = np.ones((1, classes), np.uint8)
    database_labels = (rng.random((items, classes)) < 0.3).astype(np.uint8)
    return query, database, query_labels, database_labels, bits, distances


@pytest.mark.parametrize("k", [1, 7, 39, 40])
def test_without_ties_every_order_is_the_plain_metric(k):
    query, database, query_labels, database_labels, bits, distances = tie_free_case()
    result = evaluate_ranking(query, database, query_labels, database_labels, bits=bits, topk=k)
    shared = database_labels.sum(1).astype(int)
    plain = plain_metrics(shared[np.argsort(distances)][None], k)
    for metric, order in itertools.product(METRICS, TIE_ORDERS):
        assert result.metrics[f"{metric}@{k}{order}"] == pytest.approx(plain[metric][0], abs=1e-12)


@pytest.mark.parametrize("k", [5, 40])
def test_torchmetrics_and_sklearn_without_ties(k):
    from sklearn.metrics import ndcg_score
    from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_precision

    query, database, query_labels, database_labels, bits, distances = tie_free_case()
    result = evaluate_ranking(query, database, query_labels, database_labels, bits=bits, topk=k)
    shared = database_labels.sum(1).astype(int)
    scores, target = torch.tensor(1.0 * bits - distances), torch.tensor(shared > 0)
    reference = {
        "MAP": retrieval_average_precision(scores, target, top_k=k),
        "P": retrieval_precision(scores, target, top_k=k),
        "NDCG": ndcg_score([2.0**shared - 1], [-distances], k=k),
    }
    for metric, value in reference.items():
        assert result.metrics[f"{metric}@{k}"] == pytest.approx(float(value), abs=1e-6)


def test_sklearn_averages_ties_in_dcg_the_same_way():
    from sklearn.metrics import dcg_score

    rng = np.random.default_rng(3)
    query, database, query_labels, database_labels = random_case(rng, 8, 60, 6, 4)
    query_labels[:, 0] = 1
    result = evaluate_ranking(query, database, query_labels, database_labels, bits=6, topk=60)
    gains = 2.0 ** (query_labels.astype(int) @ database_labels.T) - 1
    scores = -unpacked_distances(query, database, 6)
    # Only the whole ranking: with a cut-off sklearn averages over the tie group in another way.
    for q in range(8):
        ideal = dcg_score(gains[q : q + 1], gains[q : q + 1])
        expected = dcg_score(gains[q : q + 1], scores[q : q + 1]) / ideal
        assert result.per_query["NDCG@60"][q] == pytest.approx(expected, abs=1e-9)


def test_expectation_is_the_mean_of_shuffled_databases():
    rng = np.random.default_rng(4)
    case = random_case(rng, 6, 200, 8, 6, 0.25)
    query, database, query_labels, database_labels = case
    exact = evaluate_ranking(*case, bits=8, topk=50).metrics
    shuffled = []
    for _ in range(200):
        order = rng.permutation(200)
        metrics = evaluate_ranking(
            query, database[order], query_labels, database_labels[order], bits=8, topk=50
        ).metrics
        shuffled.append(metrics)
        for name, value in metrics.items():
            if not name.endswith("-index_order"):
                assert value == pytest.approx(exact[name], abs=1e-12)
    for metric in METRICS:
        samples = np.array([m[f"{metric}@50-index_order"] for m in shuffled])
        error = samples.std() / math.sqrt(len(samples))
        assert abs(samples.mean() - exact[f"{metric}@50"]) < 5 * error
        assert samples.max() <= exact[f"{metric}@50-optimistic"] + 1e-12
        assert samples.min() >= exact[f"{metric}@50-pessimistic"] - 1e-12


def test_a_relevant_first_file_gains_nothing_but_its_index_order():
    rng = np.random.default_rng(5)
    query, database, query_labels, database_labels = random_case(rng, 1, 100, 3, 2)
    query_labels[:] = [[1, 0]]
    sorted_rows = np.argsort(-database_labels[:, 0].astype(int), kind="stable")
    plain = evaluate_ranking(query, database, query_labels, database_labels, bits=3, topk=30)
    biased = evaluate_ranking(
        query, database[sorted_rows], query_labels, database_labels[sorted_rows], bits=3, topk=30
    )
    assert biased.metrics["MAP_min@30"] == pytest.approx(plain.metrics["MAP_min@30"], abs=1e-12)
    assert biased.metrics["MAP_min@30-index_order"] == pytest.approx(
        biased.metrics["MAP_min@30-optimistic"], abs=1e-12
    )


def test_all_tied_is_chance():
    """Same codes everywhere: AP over a random order of N items, R relevant, has a closed form."""
    items, relevant = 2000, 300
    codes = np.zeros((items, 8), np.uint8)
    labels = np.zeros((items, 1), np.uint8)
    labels[:relevant] = 1
    metrics = evaluate_ranking(
        codes[:1], codes, np.ones((1, 1), bool), labels, bits=64, topk=[items, 100]
    ).metrics
    harmonic = sum(1 / r for r in range(1, items + 1))
    ratio = (relevant - 1) / (items - 1)
    chance = (harmonic + ratio * (items - harmonic)) / items
    assert metrics[f"MAP_all@{items}"] == pytest.approx(chance, abs=1e-12)
    assert metrics[f"MAP@{items}"] == pytest.approx(chance, abs=1e-12)
    assert metrics["P@100"] == pytest.approx(relevant / items, abs=1e-12)
    assert metrics["ACG@100"] == pytest.approx(relevant / items, abs=1e-12)
    assert metrics["MAP@100-optimistic"] == 1
    assert metrics["MAP@100-pessimistic"] == 0


def test_map_is_not_monotone_and_its_bounds_know():
    """A hit at rank 1, then a tie of one relevant and two irrelevant items cut at rank 3."""
    database = np.packbits([[0, 0], [1, 0], [1, 0], [1, 0]], axis=1)
    labels = np.array([[1], [1], [0], [0]])
    metrics = evaluate_ranking(database[:1], database, labels[:1], labels, bits=2, topk=3).metrics
    assert metrics["MAP@3-optimistic"] == 1
    assert metrics["MAP@3-pessimistic"] == pytest.approx(5 / 6)
    assert metrics["MAP_min@3-pessimistic"] == pytest.approx(1 / 2)


def test_queries_without_relevant_items_are_left_out_and_counted():
    codes = np.array([[0], [255], [0]], np.uint8)
    query_labels = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    database_labels = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]])
    result = evaluate_ranking(codes, codes, query_labels, database_labels, bits=8, topk=1)
    assert result.metrics["num_queries"] == 3
    assert result.metrics["num_database"] == 3
    assert result.metrics["num_queries_without_relevant"] == 1
    assert np.isnan(result.per_query["MAP@1"]).tolist() == [False, False, True]
    # The second query has a relevant item, but none inside the top 1: it counts 0.
    assert result.per_query["MAP@1"][:2] == pytest.approx([0.5, 0])
    assert result.metrics["MAP@1"] == pytest.approx(0.25)


def test_k_above_the_database_stops_there_and_warns_once():
    rng = np.random.default_rng(6)
    case = random_case(rng, 5, 9, 4, 3, 0.6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        large = evaluate_ranking(*case, bits=4, topk=[1000, 500]).metrics
    assert len(caught) == 1
    assert "1000, 500 is above the database's 9 items" in str(caught[0].message)
    exact = evaluate_ranking(*case, bits=4, topk=9).metrics
    for name, value in exact.items():
        assert large[name.replace("@9", "@1000")] == value
        assert large[name.replace("@9", "@500")] == value


def test_progress_reaches_the_end():
    rng = np.random.default_rng(7)
    seen = []
    evaluate_ranking(
        *random_case(rng, 10, 20, 8, 3),
        bits=8,
        topk=5,
        max_pairs=400,
        progress=lambda *state: seen.append(state),
    )
    assert len(seen) > 1
    assert seen[-1] == (10, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 9}, "query codes must be packed uint8 of shape"),
        ({"bits": 0}, "bits of query codes must be a positive integer"),
        ({"bits": 7}, "bits set beyond the declared 7"),
        ({"topk": 0}, "top k must be a positive integer"),
        ({"topk": []}, "no top k"),
        ({"database_codes": np.zeros((0, 1), np.uint8)}, "no database codes"),
        ({"database_codes": np.zeros((3, 1), np.int64)}, "database codes must be packed uint8"),
        ({"query_labels": np.ones((1, 2))}, "query labels must be of shape"),
        ({"query_labels": np.full((2, 2), 3)}, "multi-hot"),
        ({"query_labels": np.ones((2, 3))}, "both need the same classes"),
        ({"query_labels": np.zeros((2, 2))}, "nothing to measure"),
    ],
)
def test_bad_input_is_one_clear_line(change, message):
    arguments = {
        "query_codes": np.full((2, 1), 255, np.uint8),
        "database_codes": np.full((3, 1), 255, np.uint8),
        "query_labels": np.ones((2, 2)),
        "database_labels": np.ones((3, 2)),
        "bits": 8,
        "topk": 2,
    }
    with pytest.raises(ValueError, match=message) as error:
        evaluate_ranking(**(arguments | change))
    assert "\n" not in str(error.value)
