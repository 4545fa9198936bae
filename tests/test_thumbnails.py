"""Thumbnails of photos."""

import numpy as np
import pytest

from regiondh_d2.data.thumbnails import thumbnail


def means(pixels):
    """The definition, for sides that 12 divides."""
    height, width = (side // 12 for side in pixels.shape[:2])
    grays = pixels.astype(np.float64).mean(axis=2)
    return grays.reshape(12, height, 12, width).mean(axis=(1, 3)).ravel()


@pytest.mark.parametrize("size", [(48, 60), (360, 240), (4800, 1200)])
def test_means_of_equal_parts(size):
    """Of a large photo not all pixels are read, so its means are near."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 200, (12, 12, 3), dtype=np.uint8)
    pixels = np.kron(coarse, np.ones((size[0] // 12, size[1] // 12, 1), np.uint8))
    pixels += rng.integers(0, 50, pixels.shape, dtype=np.uint8)
    found = thumbnail(pixels)
    assert (found.dtype, found.shape) == (np.uint8, (144,))
    assert np.abs(found - means(pixels)).max() < (4 if max(size) > 1000 else 1.5)
    assert np.array_equal(thumbnail(pixels[..., ::-1]), found)  # BGR


def test_gray_and_yuv():
    gray = np.random.default_rng(0).integers(0, 256, (24, 24, 1), dtype=np.uint8)
    assert np.abs(thumbnail(gray) - means(gray)).max() <= 1
    yuv = np.concatenate([gray.astype(np.float32), np.full((24, 24, 2), -30, np.float32)], axis=2)
    assert np.array_equal(thumbnail(yuv), thumbnail(gray))


def test_a_photo_smaller_than_its_thumbnail():
    assert thumbnail(np.full((1, 3, 3), 77, np.uint8)).tolist() == [77] * 144
