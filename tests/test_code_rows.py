"""Rows of code sets, taken and joined."""

import dataclasses

import numpy as np
import pytest

from code_sets import assert_same, make_code_set, make_photo_set
from regiondh_d2.retrieval.code_store import write_codes
from regiondh_d2.structures.code_roots import move_root
from regiondh_d2.structures.code_rows import join_code_sets, take_rows
from regiondh_d2.structures.codes import CodeFileError


def test_join_and_take_rows_are_inverse(tmp_path):
    """Rows taken one by one and joined in another order are those rows, instances and all."""
    whole = make_code_set()
    order = [3, 0, 4, 2, 1]
    joined = join_code_sets([take_rows(whole, [row]) for row in order])
    assert joined.image_ids == [f"{row:06d}" for row in order]
    for name in ("codes", "labels", "activations", "features"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name)[order])
    # Of instances 0 to 3, in rows 0, 0, 2 and 4 of the whole.
    np.testing.assert_array_equal(joined.instances.image_index, [1, 1, 2, 3])
    np.testing.assert_array_equal(joined.instances.boxes, whole.instances.boxes[[0, 1, 3, 2]])
    assert_same(whole, take_rows(joined, np.argsort(order)))


def test_a_row_can_be_taken_twice(tmp_path):
    taken = take_rows(make_photo_set(), [0, 2, 0])
    write_codes(tmp_path / "codes.h5", taken)
    np.testing.assert_array_equal(taken.instances.image_index, [0, 0, 1, 2, 2])
    boxes = make_photo_set().instances.boxes
    np.testing.assert_array_equal(taken.instances.boxes, boxes[[0, 1, 2, 0, 1]])
    assert taken.roots == ["/photos"]


def test_take_rows_leaves_out_the_instances_of_other_rows():
    taken = take_rows(make_code_set(), [2, 1])
    np.testing.assert_array_equal(taken.instances.image_index, [0])
    np.testing.assert_array_equal(taken.instances.classes, [1])


@pytest.mark.parametrize("name", ["content_sha256", "thumbnails"])
def test_codes_with_what_is_known_of_their_photos_join_those_without(name):
    photos = make_photo_set()
    joined = join_code_sets([dataclasses.replace(photos, **{name: None}), photos])
    assert not getattr(joined, name)[:5].any()
    np.testing.assert_array_equal(getattr(joined, name)[5:], getattr(photos, name))


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": 11, "codes": np.zeros((5, 2), np.uint8), "activations": None},
        {"dataset": "other"},
        {"class_names": ["a", "b", "c"]},
        {"model_fingerprint": ""},
        {"settings": ""},
        {"activations": None},
        {"instances": dataclasses.replace(make_code_set().instances, bits=10)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_codes_that_do_not_belong_together_are_not_joined(changes):
    with pytest.raises(CodeFileError, match=next(iter(changes))):
        join_code_sets([make_code_set(), dataclasses.replace(make_code_set(), **changes)])


def test_a_classifier_is_kept_by_what_changes_rows_and_never_mixed_with_another():
    with_it, without = make_photo_set(), make_photo_set(class_weights=None)
    weights = with_it.class_weights
    for found in (
        take_rows(with_it, [1, 3]),
        join_code_sets([without, with_it]),
        join_code_sets([with_it, with_it]),
        move_root(with_it, "/photos", "/elsewhere"),
    ):
        assert found.class_weights is weights
    other = dataclasses.replace(with_it, class_weights=weights + 1)
    with pytest.raises(CodeFileError, match="different class_weights cannot be joined"):
        join_code_sets([without, with_it, other])
