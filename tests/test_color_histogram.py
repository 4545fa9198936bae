"""The color-histogram reference: NumPy's histogram as oracle, and codes that make sense."""

import sys

import numpy as np
import pytest
from PIL import Image

from regiondh_d2.retrieval.color_histogram import color_histogram, color_histograms, itq_codes
from regiondh_d2.structures.packed import unpack_codes


@pytest.mark.parametrize("bins", [1, 3, 6, 8, 256])
def test_histogram_agrees_with_numpy(bins):
    if bins == 256:  # 16 million cells: compare the occupied ones
        image = np.array([[[0, 1, 2], [255, 255, 255]]], np.uint8)
        histogram = color_histogram(image, bins)
        assert np.flatnonzero(histogram).tolist() == [1 * 256 + 2, 256**3 - 1]
        return
    image = np.random.default_rng(bins).integers(0, 256, (31, 17, 3), dtype=np.uint8)
    # Value v lies in bin v * bins // 256, so the edges are the least values of each bin.
    edges = [-(-256 * i // bins) for i in range(bins)] + [256]
    expected, _ = np.histogramdd(image.reshape(-1, 3), bins=[edges] * 3)
    histogram = color_histogram(image, bins)
    assert histogram.dtype == np.float32
    np.testing.assert_allclose(histogram, expected.ravel() / (31 * 17), rtol=1e-6)
    assert histogram.sum() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_no_image(image):
    with pytest.raises(ValueError, match="uint8"):
        color_histogram(image)


def test_files_of_any_mode(tmp_path):
    gray, rgb = tmp_path / "gray.png", tmp_path / "rgb.png"
    Image.new("L", (8, 6), 200).save(gray)
    Image.new("RGB", (5, 5), (200, 200, 200)).save(rgb)
    histograms = color_histograms([gray, rgb], bins=4)
    assert histograms.shape == (2, 64)
    np.testing.assert_array_equal(histograms[0], histograms[1])
    assert color_histograms([], bins=4).shape == (0, 64)


@pytest.mark.parametrize("bits", [12, 16, 48])
def test_codes_have_the_right_width_and_padding(bits):
    features = np.random.default_rng(0).random((120, 64)).astype(np.float32)
    train, query = itq_codes(features[:100], features[:100], features[100:], bits=bits)
    width = -(-bits // 8)
    assert train.dtype == query.dtype == np.uint8
    assert train.shape == (100, width)
    assert query.shape == (20, width)
    bools = unpack_codes(train, bits)
    np.testing.assert_array_equal(np.packbits(bools, axis=1), train)  # no bit in the padding
    # A threshold at the median: each bit is set for half of the training set.
    np.testing.assert_allclose(bools.mean(axis=0), 0.5, atol=0.02)


def test_codes_repeat_and_keep_neighbors():
    rng = np.random.default_rng(1)
    centers = rng.random((8, 64))
    groups = np.repeat(np.arange(8), 20)
    features = (centers[groups] + 0.02 * rng.random((160, 64))).astype(np.float32)
    (codes,) = itq_codes(features, features, bits=16)
    np.testing.assert_array_equal(codes, itq_codes(features, features, bits=16)[0])
    distance = np.bitwise_count(codes[:, None] ^ codes[None]).sum(axis=2)
    same = groups[:, None] == groups[None]
    assert distance[same].mean() < 0.5 * distance[~same].mean()


def test_too_little_to_learn_from():
    for shape in ((10, 64), (100, 8)):
        with pytest.raises(ValueError, match="at least 16 vectors of 16 dimensions"):
            itq_codes(np.ones(shape, np.float32), bits=16)


def test_without_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match="pip install faiss-cpu"):
        itq_codes(np.ones((100, 64), np.float32))
