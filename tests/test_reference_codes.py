"""Reference codes against their definitions."""

import dataclasses
import math
import sys

import numpy as np
import pytest

from builders import code_set, object_codes
from regiondh_d2.evaluation.reference_codes import (
    REFERENCES,
    class_simhash_codes,
    feature_codes,
    image_class_codes,
    label_codes,
    predicted_codes,
    random_codes,
    spectral_codes,
)
from regiondh_d2.evaluation.retrieval_evaluator import rank_code_sets
from regiondh_d2.structures.codes import CodeFileError
from regiondh_d2.structures.packed import unpack_codes


@pytest.fixture
def sets():
    """Queries and database with labels, features and detections that follow from the labels."""
    rng = np.random.default_rng(0)

    def make(count):
        labels = (rng.random((count, 5)) < 0.4).astype(np.uint8)
        features = labels @ rng.random((5, 12)) + 0.1 * rng.random((count, 12))
        images, classes = labels.nonzero()
        scores = rng.random(len(images)).astype(np.float32)
        empty = np.zeros((len(images), 1), np.uint8)
        return code_set(
            np.zeros((count, 1), np.uint8),
            labels=labels,
            features=features.astype(np.float16),
            instances=object_codes(empty, images, scores=scores, classes=classes),
            model_fingerprint="a",
        )

    return make(20), make(60)


def bits_of(codes):
    return unpack_codes(codes.codes, codes.bits)


def test_image_classes_are_positive_scores(sets):
    rng = np.random.default_rng(1)
    weight, bias = rng.standard_normal((5, 8)), rng.standard_normal(5)
    with pytest.raises(CodeFileError, match="no activations in the query codes"):
        image_class_codes(*sets, weight, bias)
    sets = [
        dataclasses.replace(s, activations=rng.random((len(s), 8)).astype(np.float16)) for s in sets
    ]
    for found, given in zip(image_class_codes(*sets, weight, bias), sets, strict=True):
        for row, a in zip(bits_of(found), given.activations, strict=True):
            scores = [sum(w * x for w, x in zip(ws, a, strict=True)) for ws in weight]
            assert row.tolist() == [score + b > 0 for score, b in zip(scores, bias, strict=True)]


def test_labels_are_the_code(sets):
    query, database = label_codes(*sets)
    assert (bits_of(query) == sets[0].labels).all()
    assert (bits_of(database) == sets[1].labels).all()
    assert query.model_fingerprint == database.model_fingerprint == "no model"


def test_detected_classes_are_the_code(sets):
    query, _ = predicted_codes(*sets, min_score=0.5)
    found = sets[0].instances
    for image, code in enumerate(bits_of(query)):
        mine = (found.image_index == image) & (found.scores >= 0.5)
        assert set(np.flatnonzero(code)) == set(found.classes[mine].tolist())


def test_random_codes_are_fair_and_seeded(sets):
    big = dataclasses.replace(sets[1], codes=np.zeros((5000, 1), np.uint8))
    query, database = random_codes(sets[0], big, 16, seed=3)
    assert bits_of(database).mean() == pytest.approx(0.5, abs=0.01)
    assert (random_codes(sets[0], big, 16, seed=3)[0].codes == query.codes).all()
    assert (random_codes(sets[0], big, 16, seed=4)[0].codes != query.codes).any()


def test_principal_components_are_those_of_numpy(sets):
    _, database = feature_codes(*sets, 4, "pca")
    features = sets[1].features.astype(np.float64)
    centered = features - features.mean(axis=0)
    axes = np.linalg.svd(centered, full_matrices=False)[2][:4]
    projections = centered @ axes.T
    bits = bits_of(database)
    for bit, projection in zip(bits.T, projections.T, strict=True):
        clear = np.abs(projection) > 1e-3  # the sign of an axis is free
        agrees = bit[clear] == (projection[clear] >= 0)
        assert agrees.all() or not agrees.any()


def with_features(codes, features):
    features = np.asarray(features, np.float16)
    return dataclasses.replace(
        codes, codes=np.zeros((len(features), 1), np.uint8), features=features
    )


def assert_same_up_to_complement(bits, expected):
    """Bit by bit: the sign of a principal direction is free, and may mirror the wave."""
    assert bits.shape == np.shape(expected)
    for bit, wanted in zip(bits.T, np.asarray(expected, bool).T, strict=True):
        assert (bit == wanted).all() or (bit != wanted).all()


def test_simhash_of_classes_differs_as_often_as_its_angle_says(sets):
    """Of many hyperplanes, the share that separates two vectors is their angle over pi."""
    rng = np.random.default_rng(2)
    weight, bias = rng.standard_normal((5, 8)), rng.standard_normal(5)
    with pytest.raises(CodeFileError, match="no activations"):
        class_simhash_codes(*sets, weight, bias, 8)
    sets = [
        dataclasses.replace(s, activations=rng.random((len(s), 8)).astype(np.float16)) for s in sets
    ]
    query, database = class_simhash_codes(*sets, weight, bias, 4000, seed=3)
    vectors = [
        [
            [1 / (1 + math.exp(-float(a @ w) - b)) for w, b in zip(weight, bias, strict=True)]
            for a in s.activations[:3].astype(float)
        ]
        for s in sets
    ]
    for i, u in enumerate(vectors[0]):
        for j, v in enumerate(vectors[1]):
            cosine = sum(x * y for x, y in zip(u, v, strict=True)) / math.hypot(*u) / math.hypot(*v)
            share = (bits_of(query)[i] != bits_of(database)[j]).mean()
            assert share == pytest.approx(math.acos(cosine) / math.pi, abs=0.025)
    again = class_simhash_codes(*sets, weight, bias, 4000, seed=3)[0]
    assert (again.codes == query.codes).all()
    assert (class_simhash_codes(*sets, weight, bias, 4000)[0].codes != query.codes).any()


def test_spectral_bits_halve_and_quarter_an_interval(sets):
    """Images at 0, 1, ..., 15: cos(j pi x / 15) changes sign at odd multiples of 7.5 / j."""
    line = with_features(sets[1], np.arange(16)[:, None])
    query, database = spectral_codes(with_features(sets[0], [[3], [20]]), line, 3)
    expected = [
        "1111111100000000",  # changes at 7.5
        "1111000000001111",  # at 3.75 and 11.25
        "1110000011111000",  # at 2.5, 7.5 and 12.5
    ]
    expected = np.array([[int(bit) for bit in text] for text in expected]).T
    bits = bits_of(database)
    assert_same_up_to_complement(bits, expected)
    # 3 is encoded as in the database; the waves go on to 20, where they are -.5, -.5 and 1.
    assert (bits_of(query)[0] == bits[3]).all()
    assert ((bits_of(query)[1] == bits[0]) == [False, False, True]).all()


def test_a_long_direction_gets_more_spectral_bits(sets):
    """A turned grid of 3.5 by 1: frequencies 1, 2 and 3 / 3.5 along it come before 1 across it."""
    along, across = (g.ravel() for g in np.meshgrid(np.linspace(0, 3.5, 8), [0, 0.4, 0.6, 1]))
    turn = np.array([[math.cos(0.5), math.sin(0.5)], [-math.sin(0.5), math.cos(0.5)]])
    grid = with_features(sets[1], np.stack([along, across], 1) @ turn + [3, 7])
    _, database = spectral_codes(grid, grid, 5)
    waves = [np.cos(np.pi * j * along / 3.5) for j in (1, 2, 3)]
    waves += [np.cos(np.pi * across), np.cos(np.pi * 4 * along / 3.5)]
    assert_same_up_to_complement(bits_of(database), np.stack(waves, 1) >= 0)


@pytest.mark.parametrize("bits", [7, 12, 40])
def test_spectral_codes_are_the_lowest_eigenfunctions(sets, bits):
    """Against the sorted eigenvalues, 1 - exp(-(epsilon j pi / range)^2 / 2), of K directions."""
    epsilon = 0.01
    query, database = spectral_codes(*sets, bits)
    features = sets[1].features.astype(float)
    mean = features.mean(axis=0)
    axes = np.linalg.svd(features - mean, full_matrices=False)[2][:bits]
    values = [
        [[float((row - mean) @ axis) for axis in axes] for row in s.features.astype(float)]
        for s in sets
    ]
    spans = [(min(column), max(column)) for column in zip(*values[1], strict=True)]
    modes = sorted(
        (1 - math.exp(-((epsilon * j * math.pi / (b - a)) ** 2) / 2), d, j)
        for d, (a, b) in enumerate(spans)
        for j in range(1, bits + 1)
    )[:bits]

    def wave(row, direction, j):
        a, b = spans[direction]
        return math.sin(math.pi / 2 + j * math.pi / (b - a) * (row[direction] - a))

    waves = [[wave(row, d, j) for _, d, j in modes] for row in values[0] + values[1]]
    found = np.concatenate([bits_of(query), bits_of(database)])
    assert np.abs(waves).min() > 1e-6  # no image lies where rounding decides
    assert_same_up_to_complement(found, np.array(waves) >= 0)


def test_spectral_codes_need_neither_faiss_nor_many_features_but_a_spread(sets, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert spectral_codes(*sets, 13)[0].bits == 13
    with pytest.raises(ImportError, match="pca codes need FAISS"):
        feature_codes(*sets, 4, "pca")
    # Two images span one direction, in which every bit has its wave.
    two = with_features(sets[1], [[0, 1, 0], [1, 0, 0]])
    assert (bits_of(spectral_codes(two, two, 4)[1]).sum(axis=0) % 2 == [1, 0, 1, 0]).all()
    alike = with_features(sets[1], np.full((60, 12), 0.1))
    with pytest.raises(CodeFileError, match="whose features differ"):
        spectral_codes(sets[0], alike, 4)


@pytest.mark.parametrize("method", ["pca", "spectral"])
def test_features_of_two_lengths_are_refused(sets, method):
    query = with_features(sets[0], sets[0].features[:, :11])
    with pytest.raises(CodeFileError, match="queries have 11 features and the database 12"):
        REFERENCES[method](query, sets[1], 4)


@pytest.mark.parametrize("method", ["lsh", "pca", "itq"])
def test_codes_of_features_beat_chance(sets, method):
    scores = [
        rank_code_sets(*pair, 20)[0].metrics["MAP_min@20"]
        for pair in (feature_codes(*sets, 12, method), random_codes(*sets, 12))
    ]
    assert scores[0] > scores[1] + 0.05
    (query, database), (again, _) = (feature_codes(*sets, 12, method) for _ in range(2))
    assert (query.codes == again.codes).all()


@pytest.mark.parametrize(
    ("name", "lacking", "text"),
    [
        ("true_labels", "labels", "labels"),
        ("detected_classes", "instances", "detected objects"),
        ("itq", "features", "features"),
        ("spectral", "features", "features"),
    ],
)
def test_what_a_reference_needs_is_named(sets, name, lacking, text):
    for i, role in enumerate(("query", "database")):
        poorer = list(sets)
        poorer[i] = dataclasses.replace(sets[i], **{lacking: None})
        with pytest.raises(CodeFileError, match=f"no {text} in the {role} codes"):
            REFERENCES[name](*poorer, 8)


def test_more_bits_than_features_are_refused(sets):
    with pytest.raises(CodeFileError, match="13 bits need"):
        feature_codes(*sets, 13, "itq")
