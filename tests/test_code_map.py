"""The map of codes, beside another way to make it."""

import numpy as np
import pytest

from builders import code_set
from regiondh_d2.evaluation.code_map import code_map


def test_the_map_agrees_with_another_pca():
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    values = rng.random((40, 9)) < rng.random(9)
    places, meaning = code_map(code_set(values))
    pca = PCA(2, svd_solver="full").fit(values.astype(float))
    expected = pca.transform(values.astype(float))
    signs = np.sign((places * expected).sum(axis=0))
    assert places == pytest.approx(expected * signs)
    assert f"{pca.explained_variance_ratio_.sum():.0%} of their variance" in meaning


def test_the_map_points_the_same_way_whatever_the_order():
    values = np.random.default_rng(1).random((30, 8)) < 0.5
    forward, _ = code_map(code_set(values))
    backward, _ = code_map(code_set(values[::-1]))
    assert backward[::-1] == pytest.approx(forward)


@pytest.mark.parametrize("bits", [1, 5])
def test_maps_of_codes_without_variance(bits):
    places, meaning = code_map(code_set(np.ones((3, bits))))
    assert places.tolist() == [[0, 0]] * 3
    assert "0%" in meaning


def test_one_code_has_no_map():
    with pytest.raises(ValueError, match="at least two codes, not 1"):
        code_map(code_set(np.eye(1)))
