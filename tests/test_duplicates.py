"""Copies among the indexed photos."""

from dataclasses import replace

import numpy as np

from regiondh_d2.retrieval.duplicates import CopyFinder
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


def test_files_that_were_saved_again():
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
