"""Objects and images together, against plain loops with fractions."""

from fractions import Fraction

import numpy as np
import pytest

from regiondh_d2.retrieval.blend import blend_keys, check_blend, nearest_objects
from regiondh_d2.retrieval.index_folder import write_index_folder
from regiondh_d2.retrieval.queries import Query
from regiondh_d2.utils.errors import RegionDHError
from searching import (
    BITS,
    BOX,
    CLASSES,
    INSTANCE_BITS,
    distances_to,
    make_items,
    queries,
    search_index,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("blend") / "index"
    return write_index_folder(path, make_items(), engine="numpy")


def expected_answers(items, codes, image_code, weight, class_name=None, removed=()):
    """(blended distance, row, distance of the objects, of the images, rows of the objects) of each
    image that may answer, in order."""
    found = items.instances
    by_image = distances_to(image_code, items.codes, BITS)
    distances = [distances_to(code, found.codes, INSTANCE_BITS) for code in codes]
    answers = []
    for image in range(len(items)):
        rows = [
            row
            for row in np.flatnonzero(found.image_index == image).tolist()
            if row not in removed and class_name in (None, CLASSES[found.classes[row]])
        ]
        if class_name is not None and not rows:
            continue
        nearest = [min([(d[row], row) for row in rows], default=(12, None)) for d in distances]
        total = sum(int(d) for d, _ in nearest)
        blended = total + Fraction(weight) * int(by_image[image])
        answers.append((blended, image, total, int(by_image[image]), [row for _, row in nearest]))
    return sorted(answers, key=lambda answer: answer[:2])


def found_answers(result):
    return [
        (a.blended, a.row, a.distance, a.image_distance, [one and one.row for one in a.objects])
        for a in result.answers
    ]


@pytest.mark.parametrize("class_name", [None, "cat"])
@pytest.mark.parametrize("weight", ["0.1", "0.5", "3"])
@pytest.mark.parametrize("count", [1, 2])
def test_images_are_ranked_by_both_distances(folder, count, weight, class_name):
    codes, (image_code,) = queries(count, INSTANCE_BITS), queries(1, BITS)
    query = Query("q.jpg", codes, (BOX,) * count, image_code=image_code[None])
    expected = expected_answers(folder.items, codes, image_code, weight, class_name)
    assert len({answer[0] for answer in expected}) < len(expected)  # some are equal
    for topk in (7, 100):
        result = search_index(folder, query, topk, class_name, blend=float(weight))
        found = found_answers(result)
        assert [row[1:] for row in found] == [row[1:] for row in expected[:topk]]
        assert [row[0] for row in found] == pytest.approx([float(e[0]) for e in expected[:topk]])
    if class_name is None:
        assert len(found) == 60  # those without objects, too
        assert {row[2] for row in found if row[1] >= 50} == {12 * count}


def test_max_distance_limits_the_distance_of_the_objects(folder):
    codes, (image_code,) = queries(1, INSTANCE_BITS), queries(1, BITS)
    query = Query("q.jpg", codes, (BOX,), image_code=image_code[None])
    expected = expected_answers(folder.items, codes, image_code, "0.5")
    expected = [row for row in expected if row[2] <= 2]
    assert 3 < len(expected) < 50
    result = search_index(folder, query, 60, blend=0.5, max_distance=2)
    assert [row[1:] for row in found_answers(result)] == [row[1:] for row in expected]


def test_removed_objects_do_not_count(tmp_path):
    folder = write_index_folder(tmp_path / "index", make_items(), engine="numpy")
    removed = np.arange(0, 150, 2)
    folder.index("instance").remove(removed)
    codes, (image_code,) = queries(1, INSTANCE_BITS), queries(1, BITS)
    query = Query("q.jpg", codes, (BOX,), image_code=image_code[None])
    expected = expected_answers(folder.items, codes, image_code, "0.5", removed=set(removed))
    result = search_index(folder, query, 60, blend=0.5)
    assert [row[1:] for row in found_answers(result)] == [row[1:] for row in expected]


def test_what_json_says(folder):
    codes, image_code = queries(1, INSTANCE_BITS), queries(1, BITS)
    query = Query("q.jpg", codes, (BOX,), image_code=image_code)
    values = search_index(folder, query, 3, blend=0.5).as_dict()
    assert values["blend"] == 0.5
    for answer in values["answers"]:
        assert answer["blended"] == answer["distance"] + 0.5 * answer["image_distance"]
    plain = search_index(folder, query, 3).as_dict()
    assert not {"blend", "blended", "image_distance"} & (plain.keys() | plain["answers"][0].keys())


def test_equal_sums_are_equal():
    """1 + 0.1 x 2 and 0 + 0.1 x 12, which differ as floating-point numbers."""
    assert 1 + 0.1 * 2 != 0 + 0.1 * 12
    first, second = blend_keys(np.array([1, 0]), np.array([2, 12]), 0.1)
    assert first == second
    keys = blend_keys(np.array([1, 0]), np.array([3, 13]), 1e-7)
    assert keys.tolist() == [1, 0]  # finer than a millionth is 0


def test_the_first_of_equal_objects_is_the_nearest():
    items = make_items()
    items.instances.codes[:] = 0
    least, nearest = nearest_objects(np.zeros(2, np.uint8), items.instances, 60)
    for image in range(60):
        rows = np.flatnonzero(items.instances.image_index == image)
        assert nearest[image] == (rows[0] if len(rows) else -1)
        assert least[image] == (0 if len(rows) else INSTANCE_BITS)


@pytest.mark.parametrize("weight", [-0.1, 1000.5, float("nan"), float("inf"), "0.5", None, True])
def test_what_is_no_weight(weight):
    with pytest.raises(RegionDHError, match="^blend must be a number from 0 to 1000, not "):
        check_blend(weight)


def test_searches_that_have_no_blend(folder):
    of_object = Query("q.jpg", queries(1, INSTANCE_BITS), (BOX,), image_code=queries(1, BITS))
    of_image = Query("q.jpg", queries(1, BITS))
    unknown = Query("q.jpg", queries(1, INSTANCE_BITS), (BOX,))
    for query, options, message in (
        (of_image, {}, "blend is for a query of objects: give a box or an instance"),
        (of_object, {"all_objects": True}, "blend ranks images: search without all_objects"),
        (unknown, {}, "blend: the query has no code of its image"),
    ):
        with pytest.raises(RegionDHError, match=message):
            search_index(folder, query, blend=0.5, **options)
