"""Answers to images and to objects, and sums over several, against plain loops."""

from dataclasses import replace

import numpy as np
import pytest

from regiondh_d2.retrieval import answers
from regiondh_d2.retrieval.index_file import IndexFileError
from regiondh_d2.retrieval.index_folder import write_index_folder
from regiondh_d2.retrieval.queries import Query
from regiondh_d2.structures.packed import pack_codes, unpack_codes
from searching import (
    BITS,
    BOX,
    CLASSES,
    INSTANCE_BITS,
    best_of_images,
    distances_to,
    found_rows,
    make_items,
    queries,
    search_index,
    sort_pairs,
)


@pytest.fixture(params=["faiss", "numpy"])
def folder(request, tmp_path):
    return write_index_folder(tmp_path / "index", make_items(), engine=request.param)


@pytest.mark.parametrize("class_name", [None, "cat"])
def test_an_image_finds_images(folder, class_name):
    items = folder.items
    allowed = [
        class_name is None
        or any(
            CLASSES[c] == class_name
            for c in items.instances.classes[items.instances.image_index == i]
        )
        for i in range(len(items))
    ]
    assert sum(allowed) > 5
    for code in queries(4, BITS):
        result = search_index(folder, Query("q.jpg", code[None]), 8, class_name)
        found = [(answer.distance, answer.row) for answer in result.answers]
        assert found == sort_pairs(distances_to(code, items.codes, BITS), allowed, 8)
        assert (result.searched, result.bits, result.class_name) == (60, BITS, class_name)
    answer = result.answers[0]
    assert answer.image_id == f"{answer.row:06d}"
    assert answer.file_name == f"photos/{answer.row}.jpg"
    assert answer.labels == tuple(np.array(CLASSES)[items.labels[answer.row] == 1])
    assert answer.objects == ()


def with_activations(items, seed=5):
    """Random activations that round to the codes."""
    rng = np.random.default_rng(seed)
    bits = unpack_codes(items.codes, items.bits)
    activations = np.where(bits, 0.6, 0.1) + 0.3 * rng.random(bits.shape)
    return replace(items, activations=activations.astype(np.float16))


def order_of_ties(items, query, allowed):
    """(distance, row) by a sort of (distance, squared distance of activations, row) by loops."""
    keys = [
        (
            int(distance),
            sum(
                (float(a) - float(b)) ** 2
                for a, b in zip(query.activation, items.activations[row], strict=True)
            ),
            row,
        )
        for row, distance in enumerate(distances_to(query.codes[0], items.codes, items.bits))
        if allowed[row]
    ]
    return [(distance, row) for distance, _, row in sorted(keys)]


@pytest.mark.parametrize("engine", ["faiss", "numpy"])
@pytest.mark.parametrize("class_name", [None, "cat"])
@pytest.mark.parametrize("fetched", [1, 100])
def test_images_at_one_distance_are_in_the_order_of_activations(
    tmp_path, monkeypatch, engine, class_name, fetched
):
    """Also where the last answers have one distance, and however few are fetched at first."""
    monkeypatch.setattr(answers, "_FETCHED", fetched)
    items = make_items()
    items.codes[:, 1:] = 0  # few distances
    items = with_activations(items)
    folder = write_index_folder(tmp_path / "index", items, engine=engine)
    found = items.instances
    cats = np.isin(np.arange(60), found.image_index[found.classes == 0])
    allowed = cats if class_name else np.ones(60, bool)
    activation = np.random.default_rng(6).random(BITS).astype(np.float32)
    query = Query("q.jpg", pack_codes(activation[None] > 0.5), activation=activation)
    expected = order_of_ties(items, query, allowed)
    for topk in (1, 3, 7, 20, 1000):
        result = search_index(folder, query, topk, class_name)
        assert [(one.distance, one.row) for one in result.answers] == expected[:topk]
    by_row = search_index(folder, replace(query, activation=None), 1000, class_name).answers
    assert [(one.distance, one.row) for one in by_row] == sorted(expected) != expected
    most = expected[5][0]
    near = search_index(folder, query, 1000, class_name, max_distance=most).answers
    assert [one.row for one in near] == [row for distance, row in expected if distance <= most]


def test_equal_answers_of_a_rerank_are_in_the_order_of_activations(tmp_path):
    """Equal codes decode to equal classes; without activations they are in the order of rows."""
    items = make_items(class_weights=np.ones((BITS + 1, 3), np.float32))
    items.codes[:] = items.codes[0]
    activation = np.random.default_rng(6).random(BITS).astype(np.float32)
    query = Query("q.jpg", items.codes[:1], activation=activation)
    items = with_activations(items)
    folder = write_index_folder(tmp_path / "index", items, engine="numpy")
    expected = [row for _, row in order_of_ties(items, query, np.ones(60, bool))]
    found = search_index(folder, query, 8, rerank=60).answers
    assert [one.row for one in found] == expected[:8]
    found = search_index(folder, replace(query, activation=None), 8, rerank=60).answers
    assert [one.row for one in found] == list(range(8))


@pytest.mark.parametrize("all_objects", [False, True])
@pytest.mark.parametrize("class_name", [None, "cat"])
def test_an_object_finds_objects(folder, class_name, all_objects):
    found = folder.items.instances
    allowed = [class_name is None or CLASSES[c] == class_name for c in found.classes]
    for code in queries(4, INSTANCE_BITS):
        query = Query("q.jpg", code[None], (BOX,))
        pairs = sort_pairs(distances_to(code, found.codes, INSTANCE_BITS), allowed, None)
        best = best_of_images(pairs, found.image_index)
        assert len(best) < len(pairs)
        expected = pairs if all_objects else best
        for topk in (1, 8, 1000):
            result = search_index(folder, query, topk, class_name, all_objects=all_objects)
            assert found_rows(result) == expected[:topk]
        assert result.all_objects == all_objects
        for answer in result.answers:
            (one,) = answer.objects
            assert answer.row == found.image_index[one.row]
            assert answer.distance == one.distance
            assert one.box == tuple(found.boxes[one.row].tolist())
            assert one.class_name == CLASSES[found.classes[one.row]]
            assert one.score == found.scores[one.row]
    assert (result.searched, result.bits, result.objects) == (150, INSTANCE_BITS, (BOX,))


@pytest.mark.parametrize("class_name", [None, "cat"])
@pytest.mark.parametrize("count", [2, 3])
def test_several_objects_find_images_that_hold_them(folder, count, class_name):
    """Against a loop over images, objects of the query, and detections of the image."""
    items, found = folder.items, folder.items.instances
    codes = queries(count, INSTANCE_BITS)
    distances = [distances_to(code, found.codes, INSTANCE_BITS) for code in codes]
    expected = []
    for image in range(len(items)):
        rows = [
            row
            for row in range(len(found.codes))
            if found.image_index[row] == image and class_name in (None, CLASSES[found.classes[row]])
        ]
        if class_name is not None and not rows:
            continue
        least = [min([(d[row], row) for row in rows], default=(13, None)) for d in distances]
        expected.append((int(sum(d for d, _ in least)), image, [row for _, row in least]))
    expected.sort(key=lambda one: one[:2])
    assert len(expected) == 60 if class_name is None else 5 < len(expected) < 30

    for topk in (7, 100):
        result = search_index(folder, Query("q.jpg", codes, (BOX,) * count), topk, class_name)
        answers = [
            (answer.distance, answer.row, [one and one.row for one in answer.objects])
            for answer in result.answers
        ]
        assert answers == expected[:topk]
    if class_name is None:
        assert [answer.row for answer in result.answers[-10:]] == list(range(50, 60))
        assert result.answers[-1].distance == 13 * count


@pytest.mark.parametrize("engine", ["faiss", "numpy"])
def test_k_images_are_found_behind_many_near_objects_of_few(tmp_path, engine):
    """The 290 nearest objects are of two images, so that one search for k codes is not enough."""
    items = make_items(found=300)
    items.instances.image_index[:] = np.repeat([3, 7, 20, 21, 22, 49], [140, 150, 1, 2, 3, 4])
    items.instances.codes[:] = 0
    items.instances.codes[290:] = 0xF0
    folder = write_index_folder(tmp_path / "index", items, engine=engine)
    query = Query("q.jpg", np.zeros((1, 2), np.uint8), (BOX,))
    expected = [(0, 0), (0, 140), (8, 290), (8, 291), (8, 293), (8, 296)]
    for topk in (1, 2, 3, 5, 6, 7):
        assert found_rows(search_index(folder, query, topk)) == expected[:topk]
    folder.index("instance").remove(np.r_[0, 140:290])
    expected = [(0, 1), *expected[2:]]
    assert found_rows(search_index(folder, query, 4)) == expected[:4]


def test_removed_rows_are_not_found(folder):
    query = Query("q.jpg", queries(1, INSTANCE_BITS), (BOX,))
    first = found_rows(search_index(folder, query, 150, all_objects=True))
    folder.index("instance").remove(np.array([row for _, row in first[:3]]))
    again = search_index(folder, query, 150, all_objects=True)
    assert found_rows(again) == first[3:]
    assert again.searched == 147


def test_an_approximate_index_may_find_less(tmp_path):
    """One list of eight holds few of the wanted; row -1, its filling, is nobody's row."""
    items = make_items()
    folder = write_index_folder(tmp_path / "index", items, nlist=8, nprobe=1)
    codes = pack_codes(np.array([[False] * INSTANCE_BITS, [True] * INSTANCE_BITS]))
    distances = distances_to(codes[0], items.instances.codes, INSTANCE_BITS)
    one = Query("q.jpg", codes[:1], (BOX,))
    pairs = found_rows(search_index(folder, one, 150, all_objects=True))
    assert 0 < len(pairs) < 150
    assert all(distance == distances[row] for distance, row in pairs)
    best = best_of_images(pairs, items.instances.image_index)
    assert found_rows(search_index(folder, one, 150)) == best
    both = search_index(folder, Query("q.jpg", codes, (BOX, BOX)), 60).answers
    for answer in both:
        parts = [13 if one is None else one.distance for one in answer.objects]
        assert answer.distance == sum(parts)
    assert any(None in a.objects and a.objects != (None, None) for a in both)


def test_an_index_without_objects(tmp_path):
    empty = make_items(found=0)
    folder = write_index_folder(tmp_path / "empty", empty, engine="numpy")
    codes = queries(2, INSTANCE_BITS)
    assert search_index(folder, Query("q.jpg", codes[:1], (BOX,))).answers == ()
    both = search_index(folder, Query("q.jpg", codes, (BOX, BOX)), 3).answers
    assert [(answer.row, answer.objects) for answer in both] == [
        (i, (None, None)) for i in range(3)
    ]
    assert search_index(folder, Query("q.jpg", codes, (BOX, BOX)), 3, "cat").answers == ()

    folder = write_index_folder(tmp_path / "none", make_items(instances=None), engine="numpy")
    with pytest.raises(IndexFileError, match="has no level 'instance'"):
        search_index(folder, Query("q.jpg", codes, (BOX, BOX)))
    with pytest.raises(ValueError, match="class 'cat': the index has no detected objects"):
        search_index(folder, Query("q.jpg", queries(1, BITS)), 3, "cat")
