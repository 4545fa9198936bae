"""Objectives with a center per class against loops and hand-worked cases."""

import math

import pytest
import torch

from label_sets import LABEL_SETS, dot, mean, multi_hot, pairs_of, rand
from regiondh_d2.modeling.center_losses import csq_loss, orthohash_loss
from regiondh_d2.modeling.hash_centers import hash_centers


def test_csq_equals_a_loop_over_bits():
    a, centers, tie_code = rand(6, 8), hash_centers(4, 8), torch.tensor([1.0, -1.0] * 4)
    entropies, quantization = [], []
    for n, classes in enumerate(LABEL_SETS[:5]):
        for bit in range(8):
            votes = sum(centers[c, bit].item() for c in classes) or tie_code[bit].item()
            p = a[n, bit].item()
            entropies.append(-math.log(p if votes > 0 else 1.0 - p))
            quantization.append((abs(2 * p - 1) - 1) ** 2)
    expected = mean(entropies) + 0.05 * mean(quantization)
    loss = csq_loss(a, multi_hot(LABEL_SETS), centers, tie_code)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_csq_is_0_at_the_centers_of_single_labels():
    centers = hash_centers(4, 8)
    a = (centers[[2, 0]] > 0).float()
    assert csq_loss(a, multi_hot([{2}, {0}]), centers, centers[0]).item() == pytest.approx(
        0.0, abs=1e-5
    )
    # In the place of each other half of the bits are wrong.
    assert csq_loss(a.flip(0), multi_hot([{2}, {0}]), centers, centers[0]).item() > 5.0


def test_orthohash_equals_a_loop_over_classes():
    a, centers = rand(6, 8), hash_centers(4, 8)
    codes, _ = pairs_of(a)
    terms = []
    for code, classes in zip(codes[:5], LABEL_SETS[:5], strict=True):
        logits = []
        for c in range(4):
            word = centers[c].tolist()
            cosine = dot(code, word) / math.sqrt(dot(code, code) * dot(word, word))
            logits.append(8.0 * (cosine - 0.2 * (c in classes)))
        log_sum = math.log(sum(math.exp(v) for v in logits))
        terms.append(mean(log_sum - logits[c] for c in classes))
    loss = orthohash_loss(a, multi_hot(LABEL_SETS), centers)
    assert loss.item() == pytest.approx(mean(terms), rel=1e-5)


def test_orthohash_of_a_code_on_its_codeword():
    """Orthogonal codewords: cosine 1 to its own and 0 to the 3 others."""
    centers = hash_centers(4, 8)
    a = (centers[[1]] > 0).float()
    expected = math.log(1 + 3 * math.exp(-8.0 * 0.8))
    assert orthohash_loss(a, multi_hot([{1}]), centers).item() == pytest.approx(expected, rel=1e-4)
    # Only the direction of a code counts.
    nearer = 0.5 + 0.1 * (a - 0.5)
    assert orthohash_loss(nearer, multi_hot([{1}]), centers).item() == pytest.approx(
        expected, rel=1e-4
    )
