"""Centers of classes: Hadamard matrices, the distances between centers, and majorities."""

import numpy as np
import pytest
import torch

from label_sets import LABEL_SETS, multi_hot
from regiondh_d2.modeling.hash_centers import hadamard_matrix, hash_centers, majority_centers


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128])
def test_hadamard_matrices_have_orthogonal_rows_of_signs(order):
    matrix = hadamard_matrix(order).numpy()
    assert set(np.unique(matrix)) <= {-1.0, 1.0}
    np.testing.assert_array_equal(matrix @ matrix.T, order * np.eye(order))


@pytest.mark.parametrize("order", [-4, 0, 3, 6, 28, 56])
def test_an_order_out_of_reach_is_refused(order):
    with pytest.raises(ValueError, match=f"order {order} "):
        hadamard_matrix(order)


def hamming(centers):
    """Distances between different rows of +-1, by comparison."""
    rows = centers.tolist()
    return [
        sum(x != y for x, y in zip(one, other, strict=True))
        for i, one in enumerate(rows)
        for other in rows[:i]
    ]


@pytest.mark.parametrize("bits", [12, 32, 48, 64])
def test_centers_differ_in_half_of_the_bits(bits):
    centers = hash_centers(10, bits)
    assert centers.shape == (10, bits)
    assert set(hamming(centers)) == {bits // 2}
    # Seeds choose other rows and signs.
    assert not torch.equal(centers, hash_centers(10, bits, seed=1))


def test_more_classes_than_bits_take_negatives():
    assert set(hamming(hash_centers(16, 8))) == {4, 8}


@pytest.mark.parametrize("bits", [32, 48])
def test_no_center_and_no_bit_is_nearly_constant(bits):
    """As the first row and the first column of the matrix itself are."""
    matrix, centers = hadamard_matrix(bits), hash_centers(bits, bits)
    for dim in (0, 1):
        assert matrix.sum(dim=dim).abs().max() >= bits - 2
        assert centers.sum(dim=dim).abs().max() < 0.75 * bits


@pytest.mark.parametrize(("num_classes", "bits"), [(80, 32), (80, 48), (20, 36), (20, 30)])
def test_centers_of_other_lengths_are_far_apart(num_classes, bits):
    centers = hash_centers(num_classes, bits)
    assert centers.shape == (num_classes, bits)
    assert set(centers.unique().tolist()) == {-1.0, 1.0}
    assert min(hamming(centers)) >= bits // 3


def test_a_code_too_short_for_its_classes_is_refused():
    with pytest.raises(ValueError, match=r"4 bits .* 20 classes .*MODEL\.REGION_DH\.BITS"):
        hash_centers(20, 4)


def test_majority_centers_equal_a_count_of_votes():
    centers = hash_centers(4, 8)
    tie_code = torch.tensor([1.0, -1.0] * 4)
    targets = majority_centers(multi_hot(LABEL_SETS), centers, tie_code)
    ties = 0
    for classes, row in zip(LABEL_SETS, targets.tolist(), strict=True):
        for bit, target in enumerate(row):
            ones = sum(1 for c in classes if centers[c, bit] > 0)
            zeros = len(classes) - ones
            ties += ones == zeros
            majority = tie_code[bit].item() if ones == zeros else (1.0 if ones > zeros else -1.0)
            assert target == majority
    assert ties > 8  # more than those of the image without labels
