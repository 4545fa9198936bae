"""Copies of a photo, by their sizes and pixels."""

import numpy as np
import pytest
from PIL import Image

from regiondh_d2.data.copies import COPIES, JPEG_QUALITY, KEPT, LIGHT, SCALE


def make_photo(width=60, height=41):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 160, (5, 7, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def test_pixels_of_copies():
    photo = make_photo()
    pixels = np.asarray(photo)
    found = {name: np.asarray(change(photo)) for name, change in COPIES.items()}
    assert (KEPT, SCALE, JPEG_QUALITY) == (0.8, 0.5, 30)
    np.testing.assert_array_equal(found["crop"], pixels[4 : 4 + 33, 6 : 6 + 48])
    np.testing.assert_array_equal(found["mirror"], pixels[:, ::-1])
    bright = np.minimum(255, pixels * LIGHT)
    np.testing.assert_allclose(found["bright"], bright, atol=1)
    assert found["small"].shape == (20, 30, 3)
    # Each pixel is about the mean of two by two, here away from the odd last row.
    halves = pixels[:40].reshape(20, 2, 30, 2, 3).mean(axis=(1, 3))
    assert np.abs(found["small"][:18].astype(float) - halves[:18]).mean() < 5
    assert found["jpeg"].shape == pixels.shape
    assert 0 < np.abs(found["jpeg"].astype(int) - pixels).mean() < 10


@pytest.mark.parametrize("name", COPIES)
def test_the_smallest_photo(name):
    copy = COPIES[name](Image.new("RGB", (1, 1), (10, 20, 30)))
    assert (copy.mode, copy.size) == ("RGB", (1, 1))
