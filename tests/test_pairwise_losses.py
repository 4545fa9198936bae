"""Pairwise objectives against loops over label sets, other formulations and hand-worked cases."""

import itertools
import math

import pytest
import torch

from label_sets import LABEL_SETS, dot, mean, multi_hot, pairs_of, rand
from regiondh_d2.modeling.pairwise_losses import (
    dmssph_loss,
    dpsh_loss,
    idhn_loss,
    isdh_soft_loss,
    triplet_loss,
)


def test_idhn_equals_a_loop_over_pairs_of_label_sets():
    a, bits = rand(6, 7), 7
    codes, pairs = pairs_of(a)
    terms, hard = [], 0
    for i, j in pairs:
        one, other = LABEL_SETS[i], LABEL_SETS[j]
        shared = len(one & other)
        s = shared / math.sqrt(len(one) * len(other)) if shared else 0.0
        product = dot(codes[i], codes[j]) / bits
        if one == other or not shared:
            hard += 1
            likelihood = 1.0 / (1.0 + math.exp(-5.0 * product))
            terms.append(-math.log(likelihood if shared else 1.0 - likelihood))
        else:
            terms.append(0.1 * bits * ((product + 1) / 2 - s) ** 2)
    assert 0 < hard < len(pairs)
    quantization = mean(abs(abs(v) - 1.0) for code in codes for v in code)
    expected = mean(terms) + 0.1 * quantization
    assert idhn_loss(a, multi_hot(LABEL_SETS)).item() == pytest.approx(expected, rel=1e-5)


def test_idhn_of_a_soft_pair_is_0_where_the_agreeing_bits_are_its_cosine():
    """{0} and {0, 1, 2, 3}: cosine 1/2, so half of the bits agree."""
    labels = multi_hot([{0}, {0, 1, 2, 3}])
    a = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]])
    assert idhn_loss(a, labels).item() == pytest.approx(0.0, abs=1e-6)
    # Equal codes agree in all bits: 4 bits of weight 0.1, squared error 1/4.
    assert idhn_loss(a[[0, 0]], labels).item() == pytest.approx(0.1, rel=1e-5)


def test_isdh_soft_equals_a_loop_over_pairs_of_label_sets():
    a, bits = rand(6, 7), 7
    codes, pairs = pairs_of(a)
    terms = []
    for i, j in pairs:
        one, other = LABEL_SETS[i], LABEL_SETS[j]
        shared = len(one & other)
        s = shared / math.sqrt(len(one) * len(other)) if shared else 0.0
        similar = 1.0 / (1.0 + math.exp(-5.0 * dot(codes[i], codes[j]) / bits))
        hard = one == other or not shared
        terms.append(
            -10.0 * math.log(similar if s else 1.0 - similar) if hard else (s - similar) ** 2
        )
    quantization = mean(abs(abs(v) - 1.0) for code in codes for v in code)
    expected = mean(terms) + 0.1 * quantization
    assert isdh_soft_loss(a, multi_hot(LABEL_SETS)).item() == pytest.approx(expected, rel=1e-5)


def test_isdh_soft_of_a_soft_pair_is_0_where_the_logistic_function_is_its_cosine():
    """{0} and {0, 1, 2, 3}: cosine 1/2, the logistic function of 0, so half of the bits agree."""
    labels = multi_hot([{0}, {0, 1, 2, 3}])
    a = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]])
    assert isdh_soft_loss(a, labels).item() == pytest.approx(0.0, abs=1e-6)
    equal = (0.5 - 1.0 / (1.0 + math.exp(-5.0))) ** 2
    assert isdh_soft_loss(a[[0, 0]], labels).item() == pytest.approx(equal, rel=1e-5)


def test_dmssph_equals_a_loop_over_pairs_of_label_sets():
    a = rand(6, 7)
    codes, pairs = pairs_of(a)
    terms = []
    for i, j in pairs:
        one, other = LABEL_SETS[i], LABEL_SETS[j]
        level = len(one & other) / len(one | other) if one | other else 0.0
        distance = sum((x - y) ** 2 for x, y in zip(codes[i], codes[j], strict=True)) / (4 * 7)
        wanted = 0.5 * (1.0 - level)
        terms.append(abs(distance - wanted) if level else max(wanted - distance, 0.0))
    quantization = mean(abs(abs(v) - 1.0) for code in codes for v in code)
    expected = mean(terms) + 0.01 * quantization
    assert dmssph_loss(a, multi_hot(LABEL_SETS)).item() == pytest.approx(expected, rel=1e-5)


def test_dmssph_of_single_labels_is_the_contrastive_loss_of_dsh():
    a, classes, bits = rand(5, 6), [0, 0, 1, 2, 1], 6
    codes, pairs = pairs_of(a)
    total = 0.0
    for i, j in pairs:
        squared = sum((x - y) ** 2 for x, y in zip(codes[i], codes[j], strict=True))
        similar = classes[i] == classes[j]
        total += 0.5 * squared if similar else 0.5 * max(2 * bits - squared, 0.0)
        total += 0.01 * sum(abs(abs(v) - 1.0) for v in codes[i] + codes[j])
    loss = dmssph_loss(a, multi_hot([{c} for c in classes]))
    assert loss.item() == pytest.approx(total / len(pairs) / (2 * bits), rel=1e-5)


def test_dmssph_gives_each_level_its_distance():
    """8 bits, margin one half: 0, 2 and 4 bits for all, half and none of the labels in common."""
    labels = multi_hot([{0, 1}, {0, 1}, {0}, {3}])
    a = torch.zeros(4, 8)
    a[2, :2] = 1.0
    a[3, 2:6] = 1.0  # 4 bits from the first two, 6 from the third: beyond the margin costs nothing
    assert dmssph_loss(a, labels).item() == pytest.approx(0.0, abs=1e-7)
    a[2, 2] = 1.0  # 3 bits from the first two, one too many for each of 4 of the 12 pairs
    assert dmssph_loss(a, labels).item() == pytest.approx(4 / 12 / 8, rel=1e-5)


def test_dpsh_is_the_negative_log_likelihood_of_the_pairs():
    a = rand(6, 7)
    codes, pairs = pairs_of(a)
    likelihoods = []
    for i, j in pairs:
        similar = 1.0 / (1.0 + math.exp(-dot(codes[i], codes[j]) / 2.0))
        likelihoods.append(similar if LABEL_SETS[i] & LABEL_SETS[j] else 1.0 - similar)
    signs = [[1.0 if v >= 0 else -1.0 for v in code] for code in codes]
    quantization = mean(
        (v - b) ** 2 for u, s in zip(codes, signs, strict=True) for v, b in zip(u, s, strict=True)
    )
    expected = -mean(map(math.log, likelihoods)) + 0.1 * quantization
    assert dpsh_loss(a, multi_hot(LABEL_SETS)).item() == pytest.approx(expected, rel=1e-5)


def test_dpsh_of_two_images():
    """Equal codes of 4 bits have the logit 2; opposite ones -2."""
    similar, dissimilar = multi_hot([{0}, {0, 1}]), multi_hot([{0}, {1}])
    equal, opposite = torch.ones(2, 4), torch.stack([torch.ones(4), torch.zeros(4)])
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    for a, labels, expected in (
        (equal, similar, right),
        (equal, dissimilar, wrong),
        (opposite, similar, wrong),
        (opposite, dissimilar, right),
    ):
        assert dpsh_loss(a, labels).item() == pytest.approx(expected, rel=1e-5)


def test_triplet_equals_a_loop_over_triplets():
    a, bits = rand(6, 7).tolist(), 7
    terms = []
    for i, j, k in itertools.permutations(range(6), 3):
        nearer, farther = (len(LABEL_SETS[i] & LABEL_SETS[other]) for other in (j, k))
        if nearer > farther:
            to_j, to_k = (
                sum((x - y) ** 2 for x, y in zip(a[i], a[other], strict=True)) / bits
                for other in (j, k)
            )
            terms.append(max(0.0, 0.25 + to_j - to_k))
    assert len(terms) > 10
    loss = triplet_loss(torch.tensor(a), multi_hot(LABEL_SETS))
    assert loss.item() == pytest.approx(mean(terms), rel=1e-5)


def test_triplet_of_three_images():
    """8 bits, margin 2 of them: the third image shares nothing with the first."""
    labels = multi_hot([{0}, {0, 1}, {1}])
    a = torch.zeros(3, 8)
    a[1, :1] = 1.0  # 1 bit from the first
    a[2, :3] = 1.0  # 3 bits from the first, 2 from the second
    # The first image's triplet is right by 2 bits, the third's (2 against 3) by one bit only.
    assert triplet_loss(a, labels).item() == pytest.approx((0 + 1 / 8) / 2, rel=1e-5)
    assert triplet_loss(a[:2], labels[:2]).item() == 0.0
