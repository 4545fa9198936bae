"""Class probabilities decoded from bits, against plain loops over the definitions."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from builders import code_set
from regiondh_d2.retrieval import class_decoder
from regiondh_d2.retrieval.class_decoder import (
    class_directions,
    class_distances,
    class_probabilities,
    decode_class_scores,
)
from regiondh_d2.structures.codes import CodeFileError

BITS, CLASSES = 12, 3
SOFTMAX = "MODEL.REGION_DH.IMAGE_LOSS 'softmax'"


def make_bits_and_weights(seed=0, rows=40):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(BITS + 1, CLASSES)).astype(np.float32)
    return rng.random((rows, BITS)) < 0.5, weights


def scores_by_loops(bits, weights):
    """A sum over the set bits, and the bias."""
    return [
        math.fsum([float(weights[-1, c]), *(float(weights[i, c]) for i in range(BITS) if row[i])])
        for row in bits
        for c in range(CLASSES)
    ]


def sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))


def test_scores_are_those_of_the_linear_layer():
    bits, weights = make_bits_and_weights()
    found = decode_class_scores(code_set(bits).codes, weights)
    np.testing.assert_allclose(found.ravel(), scores_by_loops(bits, weights), rtol=1e-12)
    layer = torch.nn.Linear(BITS, CLASSES)
    layer.weight.data = torch.from_numpy(weights[:-1].T.copy())
    layer.bias.data = torch.from_numpy(weights[-1].copy())
    expected = layer(torch.from_numpy(bits).float()).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_probabilities_are_those_of_the_training_loss():
    scores = np.array([[-800.0, 0.0, 2.0], [1.0, -1.0, 800.0]])
    logistic = [[sigmoid(max(x, -700.0)) for x in row] for row in scores.tolist()]
    for settings in ("", "INPUT.FORMAT 'RGB'", "MODEL.REGION_DH.IMAGE_LOSS 'logistic'"):
        np.testing.assert_allclose(class_probabilities(scores, settings), logistic, atol=1e-15)
    total = math.exp(-2.0) + 1.0
    found = class_probabilities(scores, SOFTMAX)
    expected = [[0.0, math.exp(-2.0) / total, 1.0 / total], [0.0, 0.0, 1.0]]
    np.testing.assert_allclose(found, expected, atol=1e-15)


@pytest.mark.parametrize("settings", ["", SOFTMAX])
def test_distances_are_one_minus_the_cosine(settings, monkeypatch):
    monkeypatch.setattr(class_decoder, "_ROWS", 7)  # several parts
    bits, weights = make_bits_and_weights(1)
    items = replace(code_set(bits), class_weights=weights, settings=settings)
    query, rows = np.array([0.9, 0.2, 0.4]), np.arange(39, -1, -1)
    expected = []
    for row in rows:
        scores = scores_by_loops(bits[row : row + 1], weights)
        if settings:
            total = sum(math.exp(x) for x in scores)
            p = [math.exp(x) / total for x in scores]
        else:
            p = [sigmoid(x) for x in scores]
        dot = sum(a * b for a, b in zip(query, p, strict=True))
        expected.append(1.0 - dot / math.hypot(*query) / math.hypot(*p))
    np.testing.assert_allclose(class_distances(query, items, rows), expected, atol=1e-12)


def test_equal_codes_are_at_one_distance_wherever_they_stand():
    bits, weights = make_bits_and_weights(2, rows=5)
    rows = np.random.default_rng(0).integers(0, 5, 999)
    items = replace(code_set(bits[rows]), class_weights=weights)
    found = class_distances(np.array([0.1, 0.5, 0.3]), items, np.arange(999))
    assert len(set(found.tolist())) == len(set(rows.tolist())) == 5
    assert found.min() >= 0.0


def test_codes_without_a_classifier():
    bits, _ = make_bits_and_weights()
    with pytest.raises(CodeFileError, match="no class_weights in the codes: extract the codes"):
        class_distances(np.ones(3), code_set(bits), np.arange(3))


def test_images_decoded_once_have_the_same_distances(monkeypatch):
    monkeypatch.setattr(class_decoder, "_ROWS", 16)
    bits, weights = make_bits_and_weights()
    items = code_set(bits, class_weights=weights)
    directions = class_directions(items)
    expected = np.reshape([sigmoid(x) for x in scores_by_loops(bits, weights)], (len(bits), -1))
    expected /= [[math.sqrt(math.fsum(p * p for p in row))] for row in expected.tolist()]
    np.testing.assert_allclose(directions, expected, rtol=1e-12)
    for rows in (np.arange(40), np.array([7, 3, 3, 39]), np.arange(0)):
        once = class_distances(np.array([0.9, 0.1, 0.4]), items, rows, directions)
        np.testing.assert_array_equal(once, class_distances([0.9, 0.1, 0.4], items, rows))
