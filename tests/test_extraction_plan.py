"""What is encoded, in which batches. Missing and empty folders are in test_known_rows.py."""

import pytest

from extraction import make_extractor, save_twelve
from regiondh_d2.retrieval.extraction_plan import plan_batches
from regiondh_d2.retrieval.images import ImageEntry, find_images


def test_batches_hold_equal_padded_sizes_in_order():
    sizes = [(32, 64), (30, 33), (65, 64), None, (1, 64), (33, 64), (32, 60), (96, 60)]
    batches = plan_batches(sizes, 3, 32)
    assert batches == [[0, 1, 4], [2, 7], [5], [6]]
    assert plan_batches(sizes[:3], 3, 0) == [[0], [1], [2]]


def test_ids_must_be_unique(tmp_path):
    first, second = find_images([save_twelve(tmp_path / "images")])[:2]
    twice = ImageEntry(first.image_id, second.file_name)
    with pytest.raises(ValueError, match="names two files"):
        make_extractor().extract([first, twice], tmp_path / "codes.h5")
    result = make_extractor().extract([first, first, second], tmp_path / "codes.h5")
    assert (result.images, result.rows) == (2, 2)
    with pytest.raises(ValueError, match="no images"):
        make_extractor().extract([], tmp_path / "none.h5")
