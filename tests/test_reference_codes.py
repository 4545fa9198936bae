"""Reference codes against their definitions."""

import dataclasses

import numpy as np
import pytest

from regiondh_d2.evaluation.reference_codes import (
    REFERENCES,
    feature_codes,
    image_class_codes,
    label_codes,
    predicted_codes,
    random_codes,
)
from regiondh_d2.evaluation.retrieval_evaluator import rank_code_sets
from regiondh_d2.retrieval.code_store import CodeFileError, CodeSet, InstanceCodes, unpack_codes


@pytest.fixture
def sets():
    """Queries and database with labels, features and detections that follow from the labels."""
    rng = np.random.default_rng(0)

    def make(count):
        labels = (rng.random((count, 5)) < 0.4).astype(np.uint8)
        features = labels @ rng.random((5, 12)) + 0.1 * rng.random((count, 12))
        images, classes = labels.nonzero()
        scores = rng.random(len(images)).astype(np.float32)
        instances = InstanceCodes(
            codes=np.zeros((len(images), 1), np.uint8),
            bits=8,
            image_index=images,
            boxes=np.zeros((len(images), 4), np.float32),
            scores=scores,
            classes=classes,
        )
        names = [str(i) for i in range(count)]
        return CodeSet(
            codes=np.zeros((count, 1), np.uint8),
            bits=8,
            image_ids=names,
            file_names=names,
            labels=labels,
            features=features.astype(np.float16),
            instances=instances,
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
    centred = features - features.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:4]
    projections = centred @ axes.T
    bits = bits_of(database)
    for bit, projection in zip(bits.T, projections.T, strict=True):
        clear = np.abs(projection) > 1e-3  # the sign of an axis is free
        agrees = bit[clear] == (projection[clear] >= 0)
        assert agrees.all() or not agrees.any()


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
