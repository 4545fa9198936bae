"""A shortlist that is ordered anew, against a sort of squared distances by loops."""

import math
from dataclasses import replace

import numpy as np
import pytest

from regiondh_d2.retrieval.index_folder import read_index_folder, write_index_folder
from regiondh_d2.retrieval.queries import Query
from regiondh_d2.structures.packed import pack_codes, unpack_codes
from searching import BITS, BOX, INSTANCE_BITS, make_items, queries, search_index


@pytest.fixture(params=["faiss", "numpy"])
def folder(request, tmp_path):
    return write_index_folder(tmp_path / "index", make_items(), engine=request.param)


@pytest.mark.parametrize("class_name", [None, "cat"])
@pytest.mark.parametrize("rerank", [3, 25, 1000])
def test_a_shortlist_is_ordered_by_activations(folder, rerank, class_name):
    """Against a sort of (squared distance, distance, row) over the shortlist."""
    items = folder.items
    activation = np.random.default_rng(2).random(BITS).astype(np.float32)
    query = Query("q.jpg", pack_codes(activation[None] > 0.5), activation=activation)
    plain = search_index(folder, query, max(8, rerank), class_name).answers
    expected = sorted(
        (
            sum(
                (float(a) - bit) ** 2
                for a, bit in zip(activation, unpack_codes(items.codes, BITS)[one.row], strict=True)
            ),
            one.distance,
            one.row,
        )
        for one in plain
    )[:8]
    answers = search_index(folder, query, 8, class_name, rerank=rerank).answers
    assert [(one.distance, one.row) for one in answers] == [one[1:] for one in expected]
    assert [one.fine_distance for one in answers] == pytest.approx([one[0] for one in expected])
    assert [one.row for one in answers] != [one.row for one in plain[:8]]
    assert plain[0].fine_distance is None


def test_equal_activations_keep_the_order(folder):
    query = Query("q.jpg", queries(1, BITS), activation=np.full(BITS, 0.5, np.float32))
    plain = [one.row for one in search_index(folder, query, 9).answers]
    assert [one.row for one in search_index(folder, query, 9, rerank=20).answers] == plain


@pytest.mark.parametrize("rerank", [3, 25])
def test_a_shortlist_is_ordered_by_features(tmp_path, rerank):
    """Against a sort of the shortlist by a loop's squared distances."""
    rng = np.random.default_rng(3)
    features = rng.normal(size=(60, 5)).astype(np.float16)
    write_index_folder(tmp_path / "index", make_items(features=features), engine="numpy")
    folder = read_index_folder(tmp_path / "index")
    feature = rng.normal(size=5).astype(np.float32)
    query = Query("q.jpg", queries(1, BITS), feature=feature)
    plain = [one.row for one in search_index(folder, query, max(8, rerank)).answers]
    squares = [sum((float(feature[i]) - float(row[i])) ** 2 for i in range(5)) for row in features]
    expected = sorted(plain, key=lambda row: squares[row])[:8]
    found = search_index(folder, query, 8, None, rerank, "features").answers
    assert [one.row for one in found] == expected != plain[:8]
    assert [one.fine_distance for one in found] == pytest.approx([squares[row] for row in expected])


def make_weights(classes=3):
    return np.random.default_rng(4).normal(size=(BITS + 1, classes)).astype(np.float32)


@pytest.mark.parametrize("rerank", [3, 25, 1000])
@pytest.mark.parametrize("own", [False, True])
def test_a_shortlist_is_ordered_by_classes(tmp_path, rerank, own):
    """Against a sort of the shortlist by a matrix product's cosines; with the network's own scores
    of the query, or with those that its code gives. No ``rerank_by`` means this."""
    weights = make_weights()
    items = make_items(class_weights=weights)
    write_index_folder(tmp_path / "index", items, engine="numpy")
    folder = read_index_folder(tmp_path / "index")
    query = Query("q.jpg", queries(1, BITS))
    plain = search_index(folder, query, max(8, rerank)).answers
    scores = unpack_codes(items.codes, BITS) @ weights[:-1] + weights[-1]
    wanted = (unpack_codes(query.codes, BITS) @ weights[:-1] + weights[-1])[0]
    if own:
        wanted = np.array([2.0, -1.0, 0.5])
        query = replace(query, class_scores=wanted)
    p, q = 1 / (1 + np.exp(-scores.astype(float))), 1 / (1 + np.exp(-wanted.astype(float)))
    far = 1 - (p @ q) / np.linalg.norm(p, axis=1) / np.linalg.norm(q)
    expected = sorted((round(far[one.row], 9), one.distance, one.row) for one in plain)[:8]
    for by in ("classes", None):
        answers = search_index(folder, query, 8, None, rerank, by).answers
        assert [(one.distance, one.row) for one in answers] == [one[1:] for one in expected]
        values = [one.fine_distance for one in answers]
        assert values == pytest.approx([one[0] for one in expected], abs=1e-6)
    assert [one.row for one in answers] != [one.row for one in plain[:8]]


@pytest.mark.parametrize("own", [False, True])
def test_a_shortlist_is_ordered_by_both(tmp_path, own):
    """Against a sort of the shortlist by the mean of two cosine distances, by loops; with the
    network's own scores of the query, or with those that its activations give. No ``rerank_by``
    means this."""
    weights = make_weights()
    items = make_items(class_weights=weights)
    folder = write_index_folder(tmp_path / "index", items, engine="numpy")
    activation = np.random.default_rng(2).random(BITS)
    query = Query("q.jpg", pack_codes(activation[None] > 0.5), activation=activation)
    wanted = [
        sum(float(a * w) for a, w in zip(activation, column[:-1], strict=True)) + float(column[-1])
        for column in weights.T
    ]
    if own:
        wanted = [2.0, -1.0, 0.5]
        query = replace(query, class_scores=np.array(wanted))

    def cosine(a, b):
        products = sum(x * y for x, y in zip(a, b, strict=True))
        return products / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    def probabilities(scores):
        return [1 / (1 + math.exp(-float(score))) for score in scores]

    far = []
    for bits in unpack_codes(items.codes, BITS):
        scores = [bits @ column[:-1] + column[-1] for column in weights.T.astype(float)]
        by_classes = cosine(probabilities(wanted), probabilities(scores))
        by_code = cosine(2 * activation - 1, 2.0 * bits - 1)
        far.append(1 - (by_classes + by_code) / 2)
    plain = search_index(folder, query, 25).answers
    expected = sorted((round(far[one.row], 9), one.distance, one.row) for one in plain)[:8]
    for by in ("both", None):
        answers = search_index(folder, query, 8, None, 25, by).answers
        assert [(one.distance, one.row) for one in answers] == [one[1:] for one in expected]
        values = [one.fine_distance for one in answers]
        assert values == pytest.approx([one[0] for one in expected], abs=1e-6)
    assert [one.row for one in answers] != [one.row for one in plain[:8]]


def test_activations_that_say_nothing_leave_the_classes(tmp_path):
    items = make_items(class_weights=make_weights())
    folder = write_index_folder(tmp_path / "index", items, engine="numpy")
    query = Query(
        "q.jpg",
        queries(1, BITS),
        activation=np.full(BITS, 0.5, np.float32),
        class_scores=np.array([2.0, -1.0, 0.5]),
    )
    rows = [
        [one.row for one in search_index(folder, query, 8, None, 25, by).answers]
        for by in ("both", "classes")
    ]
    assert rows[0] == rows[1]


def test_a_rerank_without_a_name_takes_what_there_is(folder, tmp_path):
    activation = np.random.default_rng(2).random(BITS).astype(np.float32)
    query = Query("q.jpg", pack_codes(activation[None] > 0.5), activation=activation)
    by_activations = search_index(folder, query, 8, None, 25, "activations").answers
    assert search_index(folder, query, 8, None, 25).answers == by_activations
    with pytest.raises(ValueError, match="no class_weights and the query has no activations"):
        search_index(folder, replace(query, activation=None), 8, None, 25)


def test_what_a_rerank_lacks(folder, tmp_path):
    image, features = Query("q.jpg", queries(1, BITS)), np.zeros((60, 5), np.float16)
    rich = write_index_folder(tmp_path / "rich", make_items(features=features), engine="numpy")
    weights = make_weights()
    known = write_index_folder(
        tmp_path / "known", make_items(class_weights=weights), engine="numpy"
    )
    for where, query, by, message in (
        (folder, Query("q.jpg", queries(1, INSTANCE_BITS), (BOX,)), "activations", "whole images"),
        (folder, image, "activations", "rerank by activations: the query has none"),
        (folder, replace(image, feature=features[0]), "features", "extract its codes with --feat"),
        (rich, image, "features", "the model gives none for the query"),
        (folder, image, "classes", "no class_weights; extract its codes again with --resume"),
        (folder, image, "both", "rerank by both: the index has no class_weights"),
        (known, image, "both", "the query has no activations; rerank by classes"),
        (folder, image, "color", "'color' isn't one of activations, features, classes"),
    ):
        with pytest.raises(ValueError, match=message):
            search_index(where, query, 9, None, 20, by)
