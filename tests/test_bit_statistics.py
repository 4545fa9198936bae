"""Statistics of bits, each against another way to get the same number."""

import itertools

import numpy as np
import pytest

from regiondh_d2.evaluation.bit_statistics import bit_statistics
from regiondh_d2.structures.packed import pack_codes

BITS = 11


def test_bit_statistics():
    from sklearn.metrics import mutual_info_score  # takes seconds

    rng = np.random.default_rng(0)
    values = rng.random((60, BITS)) < rng.random(BITS)
    values[:, 3], values[:, 4], values[:, 5] = True, False, ~values[:, 0]
    values[:5] = values[5:10]
    statistics = bit_statistics(pack_codes(values), BITS)
    varying = [0, 1, 2, 5, 6, 7, 8, 9, 10]
    assert statistics.ones == pytest.approx([column.sum() / 60 for column in values.T])
    # The mutual information of a variable with itself is its entropy.
    entropies = [mutual_info_score(column, column) / np.log(2) for column in values.T]
    assert statistics.entropy == pytest.approx(entropies)
    expected = np.corrcoef(values[:, varying].T.astype(float))
    assert statistics.correlation[np.ix_(varying, varying)] == pytest.approx(expected)
    assert statistics.correlation[0, 5] == pytest.approx(-1)
    assert np.isnan(statistics.correlation[[3, 4]]).all()
    assert np.isnan(statistics.correlation[:, [3, 4]]).all()
    assert np.flatnonzero(statistics.constant).tolist() == [3, 4]
    assert statistics.distinct == len({tuple(row) for row in values.tolist()}) < 60
    size, first, second = statistics.most_correlated
    assert (size, first, second) == (pytest.approx(1), 0, 5)
    eigenvalues = np.linalg.eigvalsh(expected)
    assert statistics.effective_bits == pytest.approx(
        eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    )


def test_saturated_bits_and_effective_bits_at_their_ends():
    values = np.zeros((200, 6), bool)
    for bit, ones in enumerate((0, 1, 3, 197, 199, 200)):
        values[:ones, bit] = True
    saturated = bit_statistics(pack_codes(values), 6).saturated
    assert saturated.tolist() == [True, True, False, False, True, True]

    every = np.array(list(itertools.product([False, True], repeat=5)))
    assert bit_statistics(pack_codes(every), 5).effective_bits == pytest.approx(5)
    same = np.repeat(every[:, :1], 5, axis=1)
    assert bit_statistics(pack_codes(same), 5).effective_bits == pytest.approx(1)
    constant = bit_statistics(pack_codes(np.ones((3, 5), bool)), 5)
    assert constant.effective_bits == 0
    assert constant.entropy.tolist() == [0] * 5
    assert constant.distinct == 1
    assert constant.most_correlated is None


def test_codes_of_another_length():
    with pytest.raises(ValueError, match="for 25 bits"):
        bit_statistics(pack_codes(np.eye(BITS, dtype=bool)), 25)
