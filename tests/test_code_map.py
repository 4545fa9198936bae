"""Maps of codes, each beside another way to make it."""

import sys

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


def test_tsne_keeps_groups_together():
    values = np.repeat(np.eye(2, 12, dtype=bool), 15, axis=0)
    values[15:, 2:9] = True
    values[::3, 11] = True
    places, meaning = code_map(code_set(values), "tsne")
    assert "t-SNE" in meaning
    first, second = places[:15], places[15:]
    gap = np.linalg.norm(first.mean(axis=0) - second.mean(axis=0))
    assert gap > max(np.linalg.norm(g - g.mean(axis=0), axis=1).max() for g in (first, second))


def test_tsne_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ImportError, match="pip install scikit-learn, or use method 'pca'"):
        code_map(code_set(np.eye(4)), "tsne")


def test_maps_that_cannot_be_made():
    with pytest.raises(ValueError, match="not 'umap'"):
        code_map(code_set(np.eye(4)), "umap")
    with pytest.raises(ValueError, match="at least two codes, not 1"):
        code_map(code_set(np.eye(1)))
