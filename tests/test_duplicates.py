"""Copies among the indexed photos."""

from dataclasses import replace

import numpy as np
from PIL import Image

from regiondh_d2.data.copies import COPIES
from regiondh_d2.data.thumbnails import thumbnail
from regiondh_d2.retrieval.duplicates import CopyFinder, correlations
from searching import make_items


def copies(items):
    finder = CopyFinder(items)
    return {row: found.tolist() for row in range(len(items)) if len(found := finder.of(row))}


def test_files_of_the_same_content():
    contents = np.zeros((60, 32), np.uint8)  # zeros: not known
    contents[:5] = np.arange(1, 6)[:, None]
    contents[[7, 30]] = contents[2]
    items = make_items(content_sha256=contents)
    assert copies(items) == {2: [7, 30], 7: [2, 30], 30: [2, 7]}
    assert copies(make_items()) == {}


def photo(seed):
    """Smooth areas, one of which is white."""
    coarse = np.random.default_rng(seed).integers(0, 180, (5, 6, 3), dtype=np.uint8)
    coarse[0, 0] = 255
    return Image.fromarray(coarse).resize((240, 180), Image.Resampling.BICUBIC)


def test_photos_that_were_saved_again():
    """A photo and its copies, of codes that differ in two of 20 bits at most, then other photos."""
    saved = [photo(0), *(COPIES[name](photo(0)) for name in ("small", "jpeg", "bright"))]
    pictures = [*saved, COPIES["crop"](photo(0)), COPIES["mirror"](photo(0)), photo(1), photo(0)]
    thumbnails = np.stack([thumbnail(np.asarray(picture)) for picture in pictures])
    codes = np.zeros((8, 3), np.uint8)
    codes[[1, 3], [0, 1]] = 0b11, 0b10000  # two bits, one bit
    codes[7] = [0b111, 0, 0]  # the same picture of another code: no copy
    items = replace(make_items(images=8, found=0), codes=codes, thumbnails=thumbnails)
    same = {0: [1, 2, 3], 1: [0, 2], 2: [0, 1, 3], 3: [0, 2]}
    expected = {**same, 1: [0, 2, 7], 7: [1]}
    assert copies(items) == expected
    assert CopyFinder(items).note == ""


def test_correlation_of_the_darker_grays():
    rng = np.random.default_rng(0)
    grays = rng.integers(0, 256, (9, 144), dtype=np.uint8)
    grays[3] = 255 - grays[0]
    grays[4, 30:] = 255  # too few are left
    grays[5] = 80  # no contrast
    grays[6] = (grays[0] * 0.5).astype(np.uint8)
    found = correlations(grays[0], grays)
    for row in (0, 1, 2, 3, 6, 7, 8):
        both = (grays[0] <= 230) & (grays[row] <= 230)
        oracle = np.corrcoef(grays[0][both].astype(float), grays[row][both])[0, 1]
        np.testing.assert_allclose(found[row], oracle, atol=1e-12)
    assert found[[4, 5]].tolist() == [-1, -1]


def test_rows_with_and_without_thumbnails():
    """Where one of two has none, the old rule decides; the note counts them."""
    thumbnails = np.random.default_rng(0).integers(1, 200, (60, 144), dtype=np.uint8)
    thumbnails[2:] = 0
    codes = make_items().codes.copy()
    codes[:4] = codes[0]
    activations = np.full((60, 20), 0.5, np.float16)
    items = replace(make_items(activations=activations), codes=codes, thumbnails=thumbnails)
    found = copies(items)
    assert (found[0], found[2]) == ([2, 3], [0, 1, 3])  # 0 and 1 are different pictures
    assert CopyFinder(items).note.startswith("58 of 60 photos have no thumbnail, ")


def test_files_that_were_saved_again_without_thumbnails():
    """Equal codes are not enough: what they are rounded from must be nearly equal."""
    codes = make_items().codes.copy()
    codes[:5] = codes[0]
    rng = np.random.default_rng(0)
    activations = rng.random((60, 20)).astype(np.float16)
    activations[:4] = 0.5
    activations[1] += 0.015
    activations[2, 3] += 0.04
    activations[9] = activations[0]  # of another code
    expected = {0: [1, 3], 1: [0, 3], 3: [0, 1]}
    assert copies(replace(make_items(activations=activations), codes=codes)) == expected
    features = rng.random((60, 8)).astype(np.float16)
    features[:4] = 1
    features[1] *= 1.01
    features[2] *= 1.05
    assert copies(replace(make_items(features=features), codes=codes)) == expected
    assert copies(replace(make_items(), codes=codes)) == {}
