"""Search by image and by object: order, filters and sums against plain loops, and the way from
images to answers with a small network."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from regiondh_d2.config import DEFAULT_MAX_PIXELS
from regiondh_d2.engine import build_cfg
from regiondh_d2.engine.searcher import RegionDHSearcher
from regiondh_d2.retrieval.code_store import read_codes
from regiondh_d2.retrieval.extract import ImageLoader, UnreadableImage
from regiondh_d2.retrieval.hamming_index import IndexFileError
from regiondh_d2.retrieval.index_folder import read_index_folder, write_index_folder
from regiondh_d2.retrieval.search import (
    Answer,
    FoundObject,
    Query,
    QueryObject,
    SearchResult,
    search_by_class,
    search_index,
)
from regiondh_d2.structures.codes import CodeSet, InstanceCodes
from regiondh_d2.structures.packed import pack_codes, unpack_codes
from regiondh_d2.visualization.draw import (
    BLUE,
    BOX_COLORS,
    GRAY,
    GREEN,
    RED,
    draw_boxes,
)
from regiondh_d2.visualization.grid import draw_grid
from regiondh_d2.visualization.retrieval_pictures import search_tiles

BITS, INSTANCE_BITS = 20, 12
CLASSES = ["cat", "dog", "sofa"]
BOX = QueryObject((1.0, 2.0, 3.0, 4.0))


def make_items(images=60, found=150, **changes):
    """Short codes, so that many distances are equal; the last ten images have no detection."""
    rng = np.random.default_rng(0)
    values = {
        "codes": pack_codes(rng.random((images, BITS)) < 0.3),
        "bits": BITS,
        "image_ids": [f"{i:06d}" for i in range(images)],
        "file_names": [f"photos/{i}.jpg" for i in range(images)],  # from nowhere: not looked at
        "labels": (rng.random((images, 3)) < 0.5).astype(np.uint8),
        "class_names": CLASSES,
        "model_fingerprint": "ab" * 32,
        "instances": InstanceCodes(
            codes=pack_codes(rng.random((found, INSTANCE_BITS)) < 0.3),
            bits=INSTANCE_BITS,
            image_index=np.sort(rng.integers(0, images - 10, found)),
            boxes=rng.random((found, 4)).astype(np.float32),
            scores=rng.random(found).astype(np.float32),
            classes=rng.choice(3, found, p=[0.08, 0.46, 0.46]),
        ),
    }
    return CodeSet(**(values | changes))


@pytest.fixture(params=["faiss", "numpy"])
def folder(request, tmp_path):
    return write_index_folder(tmp_path / "index", make_items(), engine=request.param)


def queries(count, bits):
    return pack_codes(np.random.default_rng(1).random((count, bits)) < 0.3)


def distances_to(code, codes, bits):
    return np.count_nonzero(unpack_codes(codes, bits) != unpack_codes(code[None], bits), axis=1)


def sort_pairs(distances, allowed, k):
    """(distance, row) pairs of the allowed rows in their order."""
    return sorted((int(d), int(row)) for row, d in enumerate(distances) if allowed[row])[:k]


def best_of_images(pairs, image_of):
    """The first (distance, row) pair of each image, of sorted ones."""
    best = {}
    for distance, row in pairs:
        best.setdefault(int(image_of[row]), (distance, row))
    return list(best.values())


# Order, filters and sums


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


def found_rows(result):
    """(distance, row) pairs of the objects that answer to an object."""
    return [(answer.distance, answer.objects[0].row) for answer in result.answers]


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


@pytest.mark.parametrize("class_name", [None, "cat"])
@pytest.mark.parametrize("rerank", [3, 25, 1000])
def test_a_shortlist_is_ordered_by_activations(folder, rerank, class_name):
    """Against a sort of (squared distance, distance, row) over the shortlist."""
    items = folder.items
    activation = np.random.default_rng(2).random(BITS).astype(np.float32)
    query = Query("q.jpg", pack_codes(activation[None] > 0.5), activation=activation)
    plain = search_index(folder, query, max(8, rerank), class_name).answers
    expected = sorted(
        (
            sum(
                (float(a) - bit) ** 2
                for a, bit in zip(activation, unpack_codes(items.codes, BITS)[one.row], strict=True)
            ),
            one.distance,
            one.row,
        )
        for one in plain
    )[:8]
    answers = search_index(folder, query, 8, class_name, rerank=rerank).answers
    assert [(one.distance, one.row) for one in answers] == [one[1:] for one in expected]
    assert [one.fine_distance for one in answers] == pytest.approx([one[0] for one in expected])
    assert [one.row for one in answers] != [one.row for one in plain[:8]]
    assert plain[0].fine_distance is None


def test_equal_activations_keep_the_order(folder):
    query = Query("q.jpg", queries(1, BITS), activation=np.full(BITS, 0.5, np.float32))
    plain = [one.row for one in search_index(folder, query, 9).answers]
    assert [one.row for one in search_index(folder, query, 9, rerank=20).answers] == plain


@pytest.mark.parametrize("rerank", [3, 25])
def test_a_shortlist_is_ordered_by_features(tmp_path, rerank):
    """Against a sort of the shortlist by a loop's squared distances."""
    rng = np.random.default_rng(3)
    features = rng.normal(size=(60, 5)).astype(np.float16)
    write_index_folder(tmp_path / "index", make_items(features=features), engine="numpy")
    folder = read_index_folder(tmp_path / "index")
    feature = rng.normal(size=5).astype(np.float32)
    query = Query("q.jpg", queries(1, BITS), feature=feature)
    plain = [one.row for one in search_index(folder, query, max(8, rerank)).answers]
    squares = [sum((float(feature[i]) - float(row[i])) ** 2 for i in range(5)) for row in features]
    expected = sorted(plain, key=lambda row: squares[row])[:8]
    found = search_index(folder, query, 8, None, rerank, "features").answers
    assert [one.row for one in found] == expected != plain[:8]
    assert [one.fine_distance for one in found] == pytest.approx([squares[row] for row in expected])


def test_what_a_rerank_lacks(folder, tmp_path):
    image, features = Query("q.jpg", queries(1, BITS)), np.zeros((60, 5), np.float16)
    rich = write_index_folder(tmp_path / "rich", make_items(features=features), engine="numpy")
    for where, query, by, message in (
        (folder, Query("q.jpg", queries(1, INSTANCE_BITS), (BOX,)), "activations", "whole images"),
        (folder, image, "activations", "rerank by activations: the query has none"),
        (folder, replace(image, feature=features[0]), "features", "extract its codes with --feat"),
        (rich, image, "features", "the model gives none for the query"),
        (folder, image, "color", "'color' isn't one of activations, features"),
    ):
        with pytest.raises(ValueError, match=message):
            search_index(where, query, 9, None, 20, by)


def test_answers_by_class(folder):
    """The images in which a detection is of the class, sorted by (distance, row)."""
    items, found = folder.items, folder.items.instances
    query = Query("q.jpg", queries(1, BITS), classes=("sofa", "cat"))
    results = search_by_class(folder, query, 6)
    assert [result.class_name for result in results] == ["sofa", "cat"]
    distances = distances_to(query.codes[0], items.codes, BITS)
    for result in results:
        holders = set(found.image_index[found.classes == CLASSES.index(result.class_name)])
        allowed = [row in holders for row in range(len(items))]
        rows = [(answer.distance, answer.row) for answer in result.answers]
        assert rows == sort_pairs(distances, allowed, 6)
    assert results[0].answers != results[1].answers
    assert search_by_class(folder, replace(query, classes=())) == []


def test_answers_by_class_are_reranked(folder):
    activation = np.random.default_rng(2).random(BITS).astype(np.float32)
    query = Query("q.jpg", queries(1, BITS), activation=activation, classes=("cat", "dog"))
    for result in search_by_class(folder, query, 6, 20):
        assert result == search_index(folder, query, 6, result.class_name, 20)
        assert result.answers[0].fine_distance is not None


def test_a_filter_is_not_exhausted_by_nearer_codes_of_other_classes(tmp_path):
    items = make_items(found=300)
    items.instances.codes[:] = 0
    items.instances.classes[:] = 1
    last = np.arange(290, 300)
    items.instances.codes[last] = 0xF0
    items.instances.classes[last] = 0
    folder = write_index_folder(tmp_path / "index", items, engine="numpy")
    query = Query("q.jpg", np.zeros((1, 2), np.uint8), (BOX,))
    result = search_index(folder, query, 4, "cat", all_objects=True)
    assert [answer.objects[0].row for answer in result.answers] == [290, 291, 292, 293]


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
    folder.level("instance").remove(np.r_[0, 140:290])
    expected = [(0, 1), *expected[2:]]
    assert found_rows(search_index(folder, query, 4)) == expected[:4]


def test_all_objects_answer_to_one_object_alone(folder):
    for codes, objects in ((queries(1, BITS), ()), (queries(2, INSTANCE_BITS), (BOX, BOX))):
        with pytest.raises(ValueError, match="all_objects is for a query of one object: give one"):
            search_index(folder, Query("q.jpg", codes, objects), all_objects=True)


def test_removed_rows_are_not_found(folder):
    query = Query("q.jpg", queries(1, INSTANCE_BITS), (BOX,))
    first = found_rows(search_index(folder, query, 150, all_objects=True))
    folder.level("instance").remove(np.array([row for _, row in first[:3]]))
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


def test_numbers_below_one(folder):
    query = Query("q.jpg", queries(2, INSTANCE_BITS), (BOX, BOX))
    with pytest.raises(ValueError, match="topk must be at least 1, not -3"):
        search_index(folder, query, -3)
    with pytest.raises(ValueError, match="rerank must be at least 1, not 0"):
        search_index(folder, query, 3, rerank=0)


def test_unknown_classes(tmp_path):
    query = Query("q.jpg", queries(1, BITS))
    for class_names, message in (
        (CLASSES, "class 'cow' is not known: use one of cat, dog, sofa"),
        ([], "class 'cow' is not known: the index names no classes"),
    ):
        items = make_items(class_names=class_names)
        folder = write_index_folder(tmp_path / "index", items, engine="numpy")
        with pytest.raises(ValueError, match=message):
            search_index(folder, query, 3, "cow")
    result = search_index(folder, Query("q.jpg", queries(1, INSTANCE_BITS), (BOX,)), 1)
    (one,) = result.answers[0].objects
    assert one.class_name == str(items.instances.classes[one.row])


# What is known of the query, and pictures


def test_labels_of_a_query_in_the_index(folder, monkeypatch):
    labels = folder.items.labels
    labels[7] = [1, 0, 1]
    folder.items.file_names[:] = [f"/photos/{i}.jpg" for i in range(60)]
    monkeypatch.chdir("/")

    def known(name, *class_names):
        objects = tuple(replace(BOX, class_name=c) for c in class_names)
        bits = INSTANCE_BITS if objects else BITS
        query = Query(name, queries(max(1, len(objects)), bits), objects)
        return search_index(folder, query, 1, check_files=False).labels

    assert known("/photos/7.jpg") == known("photos/7.jpg") == ("cat", "sofa")
    assert known("/photos/7.jpg", "sofa") == ("sofa",)
    assert known("/photos/7.jpg", "sofa", "cat", "cat") == ("sofa", "cat")
    assert known("/photos/7.jpg", "dog") is None  # the detector may be wrong
    assert known("/photos/7.jpg", "sofa", "dog") is None
    assert known("/photos/7.jpg", None) is None
    assert known("/elsewhere/7.jpg") is None


@pytest.fixture
def pictures(tmp_path):
    """An index of four black images with two objects each, the second one a sofa."""
    names = [str(tmp_path / f"{i}.png") for i in range(4)]
    for name in names:
        Image.new("RGB", (120, 90)).save(name)
    items = CodeSet(
        codes=np.array([[0], [1], [3], [7]], np.uint8),
        bits=8,
        image_ids=names,
        file_names=names,
        labels=np.array([[1, 0, 1], [1, 1, 1], [0, 1, 0], [0, 1, 1]], np.uint8),
        class_names=CLASSES,
        instances=InstanceCodes(
            codes=np.array([[0], [255]] * 4, np.uint8),
            bits=8,
            image_index=np.repeat(np.arange(4), 2),
            boxes=np.tile([[10, 10, 50, 50], [60, 20, 110, 80]], (4, 1)).astype(np.float32),
            scores=np.full(8, 0.5, np.float32),
            classes=np.array([0, 2] * 4),
        ),
    )
    return write_index_folder(tmp_path / "index", items, engine="numpy")


def test_tiles_of_labeled_images(pictures):
    query = Query(pictures.items.file_names[0], pictures.items.codes[:1])
    tiles = search_tiles(search_index(pictures, query, 4))
    assert [tile.caption for tile in tiles] == ["query", *(f"distance {i}" for i in range(4))]
    assert [tile.frame for tile in tiles] == [BLUE, GREEN, GREEN, RED, GREEN]
    assert tiles[0].names == [("cat", True), ("sofa", True)]
    assert tiles[2].names == [("cat", True), ("sofa", True), ("dog", False)]
    assert {tile.image.getpixel((0, 0)) for tile in tiles} == {(0, 0, 0)}


def test_tiles_of_objects_have_boxes_and_neutral_frames(pictures, tmp_path):
    name = str(tmp_path / "other.png")
    Image.new("RGB", (120, 90)).save(name)
    codes = np.array([[0], [255]], np.uint8)
    objects = (
        QueryObject((10.0, 10.0, 50.0, 50.0), "cow", 0.5),
        replace(BOX, box=(60, 20, 110, 80)),
    )
    tiles = search_tiles(search_index(pictures, Query(name, codes, objects), 2))
    assert [tile.frame for tile in tiles] == [BLUE, GRAY, GRAY]
    assert [tile.names for tile in tiles] == [
        [("cow", False)],
        *[[("cat", False), ("sofa", False)]] * 2,
    ]
    for tile in tiles:
        assert tile.image.getpixel((10, 30)) == BOX_COLORS[0]
        assert tile.image.getpixel((110, 30)) == BOX_COLORS[1]
        assert tile.image.getpixel((30, 30)) == (0, 0, 0)
    picture = np.asarray(draw_grid([tiles]))
    assert not (picture == RED).all(axis=2).any()  # no legend of colors that aren't used
    assert not (picture == GREEN).all(axis=2).any()


def test_tiles_of_images_that_lack_objects(pictures):
    found = FoundObject((60.0, 20.0, 110.0, 80.0), "sofa", 0.5, 0, 1)
    answer = Answer(9, "0", pictures.items.file_names[0], 0, None, (None, found))
    result = SearchResult(answer.file_name, (BOX, BOX), None, None, 8, 8, (answer,))
    _, tile = search_tiles(result)
    assert tile.names == [("sofa", False)]
    assert tile.image.getpixel((110, 30)) == BOX_COLORS[1]


def test_boxes_are_drawn_on_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees
    Image.new("RGB", (120, 60)).save(tmp_path / "turned.png", exif=exif)
    image = draw_boxes(tmp_path / "turned.png", [None, (5, 70, 50, 110)])
    assert image.size == (60, 120)
    assert image.getpixel((5, 90)) == BOX_COLORS[1]


# Coding queries with a small network


@pytest.fixture
def photo(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((180, 120)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def searcher(make_model, photo, tmp_path):
    """An index of that photo alone, at half its size for the network."""
    model = make_model("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0").eval()
    load = ImageLoader(min_size=60, max_size=1000, image_format="RGB")
    with torch.no_grad():
        (output,) = model.inference([load(str(photo))])
    found = output["instances"]
    items = CodeSet(
        codes=pack_codes(output["image_code"][None].numpy()),
        bits=12,
        image_ids=["photo"],
        file_names=[str(photo)],
        class_names=CLASSES,
        instances=InstanceCodes(
            codes=pack_codes(found.pred_codes.numpy()),
            bits=12,
            image_index=np.zeros(len(found), np.int64),
            boxes=found.pred_boxes.tensor.numpy(),
            scores=found.scores.numpy(),
            classes=found.pred_classes.numpy(),
        ),
    )
    folder = write_index_folder(tmp_path / "index", items, engine="numpy")
    return RegionDHSearcher(folder, model, load)


def pooled_boxes(searcher):
    """A list that will hold the boxes given to the RoI pooling, one tensor a call."""
    seen = []
    searcher._model.roi_heads.box_pooler.register_forward_pre_hook(
        lambda module, args: seen.append(args[1][0].tensor.clone())
    )
    return seen


def test_an_indexed_image_and_its_detections_find_themselves(searcher, photo):
    assert searcher.notes == [
        "the index has no model fingerprint: cannot check that one model made all codes"
    ]
    result = searcher.search(photo)
    assert [(answer.distance, answer.row) for answer in result.answers] == [(0, 0)]
    query = searcher.encode(photo)
    np.testing.assert_array_equal(query.codes, pack_codes(query.activation[None] > 0.5))
    assert searcher.search(photo, rerank=5).answers[0].fine_distance == pytest.approx(
        (np.minimum(query.activation, 1 - query.activation) ** 2).sum(), rel=1e-6
    )
    found = searcher.folder.items.instances
    assert len(found.codes) >= 3
    for number in (1, 3):
        result = searcher.search(photo, instance=number)
        (one,) = result.objects
        assert one.score == pytest.approx(np.sort(found.scores)[-number])
        assert one.class_name == CLASSES[found.classes[number - 1]]
        assert one.box == pytest.approx(tuple(found.boxes[number - 1].tolist()))
        assert result.answers[0].distance == 0
    every = searcher.search(photo, instance=1, topk=99, all_objects=True)
    assert len(every.answers) == len(found.codes) > len(result.answers) == 1
    result = searcher.search(photo, instance=[1, 2], box=(10, 10, 90, 90))
    assert [one.score is None for one in result.objects] == [True, False, False]
    assert [one.distance for one in result.answers[0].objects[1:]] == [0, 0]


def test_boxes_reach_the_network_in_its_pixels(searcher, photo):
    """The photo is 180 x 120 pixels, and 90 x 60 for the network."""
    seen = pooled_boxes(searcher)
    query = searcher.encode(photo, [(20, 40, 120, 90), (0, 0, 180, 120)])
    (boxes,) = seen
    assert boxes.tolist() == [[10.0, 20.0, 60.0, 45.0], [0.0, 0.0, 90.0, 60.0]]
    assert [one.box for one in query.objects] == [(20, 40, 120, 90), (0, 0, 180, 120)]
    assert query.codes.shape == (2, 2)
    for row, box in zip(query.codes, [(20, 40, 120, 90), (0, 0, 180, 120)], strict=True):
        np.testing.assert_array_equal(searcher.encode(photo, box).codes[0], row)


def test_what_of_a_box_is_outside_the_image_is_cut_off(searcher, photo):
    query = searcher.encode(photo, [(-10, 40, 500, 90.5), (30, -5, 60, 500)])
    assert [one.box for one in query.objects] == [(0, 40, 180, 90.5), (30, 0, 60, 120)]


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((200, 0, 250, 50), "box 200,0,250,50 is outside .*photo.png, which has 180 x 120 pixels"),
        ((0, -30, 50, 0), "box 0,-30,50,0 is outside"),
        ((50, 0, 50, 50), "box 50,0,50,50 is empty"),
        ((0, 60, 50, 50), "box 0,60,50,50 is empty"),
        ((0, 0, float("nan"), 50), "box 0,0,nan,50 is empty"),
        ((0, 0, float("inf"), 50), "box 0,0,inf,50 is empty"),
        ((0, 0, 50), r"box \(0, 0, 50\) is not x1, y1, x2, y2"),
        ([], r"box \[\] is not x1, y1, x2, y2"),
    ],
)
def test_wrong_boxes(searcher, photo, box, message):
    with pytest.raises(ValueError, match=message):
        searcher.search(photo, box)


def test_wrong_detections_and_images(searcher, photo, tmp_path):
    count = len(searcher.folder.items.instances.codes)
    for number in (0, count + 1):
        with pytest.raises(ValueError, match=f"no detection {number}, .* from 1 to {count}; give"):
            searcher.search(photo, instance=number)
    with pytest.raises(UnreadableImage, match=r"absent\.png: No such file"):
        searcher.search(tmp_path / "absent.png")


def test_classes_that_the_model_sees(searcher, photo):
    """Those of a probability of at least 0.5, the most probable first."""
    real = searcher._model.encode_images

    def encode_images(inputs, probabilities):
        (output,) = real(inputs)
        return [{**output, "image_probabilities": torch.tensor(probabilities)}]

    for probabilities, seen in (
        ([0.5, 0.49, 0.9], ("sofa", "cat")),
        ([0.7, 0.7, 0.7], ("cat", "dog", "sofa")),
        ([0.1, 0.2, 0.3], ()),
    ):
        searcher._model.encode_images = lambda inputs, p=probabilities: encode_images(inputs, p)
        query = searcher.encode(photo)
        assert query.classes == seen
        assert query.feature is None
        results = searcher.search_by_class(photo, 3)
        assert results == search_by_class(searcher.folder, query, 3)
        assert [result.class_name for result in results] == list(seen)
    assert searcher.encode(photo, box=(1, 2, 30, 40)).classes == ()


def test_features_of_models_that_give_them(searcher, photo):
    real, feature = searcher._model.encode_images, torch.tensor([1.0, 2.0])
    searcher._model.encode_images = lambda inputs: [{**real(inputs)[0], "image_feature": feature}]
    np.testing.assert_array_equal(searcher.encode(photo).feature, [1, 2])
    items = replace(searcher.folder.items, features=np.array([[4, 6]], np.float16))
    searcher.folder = replace(searcher.folder, items=items)
    (answer,) = searcher.search(photo, rerank=1, rerank_by="features").answers
    assert answer.fine_distance == 25


def test_a_model_that_codes_no_images(searcher):
    with pytest.raises(ValueError, match="Linear codes no images; use RegionDH"):
        RegionDHSearcher(searcher.folder, torch.nn.Linear(2, 2), searcher._load)


# The command line, after those that code and index


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("search")


@pytest.fixture(scope="module")
def workspace(random_network, tmp_path_factory, load_tool):
    """A folder with the codes of scenes, and with their index."""
    folder = tmp_path_factory.mktemp("search")
    start = ["--config-file", random_network.config, "--input", str(random_network.scenes)]
    output = ["--output", str(folder / "codes.h5")]
    assert load_tool("extract_codes").main([*start, *output, *random_network.opts]) == 0
    build = [str(folder / "codes.h5"), "--output", str(folder / "index"), "--engine", "numpy"]
    assert load_tool("build_index").main(build) == 0
    return folder


@pytest.fixture
def arguments(random_network, workspace):
    """A function from options to a complete command line."""
    query = read_codes(workspace / "codes.h5").file_names[2]

    def make(*options, opts=()):
        start = ["--config-file", random_network.config]
        for name, value in (("--index", str(workspace / "index")), ("--query", query)):
            if name not in options:
                start += [name, value]
        return [*start, *options, *random_network.opts, *opts]

    return make


def error_of(capsys):
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    return error


def test_from_images_to_answers(tool, workspace, arguments, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert tool.main(arguments("--topk", "4", "--json", str(out))) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    items = read_codes(workspace / "codes.h5")
    expected = sort_pairs(distances_to(items.codes[2], items.codes, 48), np.ones(11), 4)
    answers = json.loads(out.read_text())["answers"]
    assert [(answer["distance"], answer["row"]) for answer in answers] == expected
    first, head, *lines = printed.out.splitlines()
    assert first == f"{items.file_names[2]}: nearest of 11 images by 48-bit codes"
    assert head.split() == ["rank", "distance", "image"]
    assert [line.split() for line in lines] == [
        [str(rank), str(distance), items.file_names[row]]
        for rank, (distance, row) in enumerate(expected, 1)
    ]


def test_objects_and_pictures(tool, workspace, arguments, tmp_path, capsys):
    out, grid = tmp_path / "out.json", tmp_path / "grid.png"
    found = read_codes(workspace / "codes.h5").instances
    options = ["--instance", "1", "--save", str(grid), "--json", str(out)]
    assert tool.main(arguments(*options)) == 0
    best = np.flatnonzero(found.image_index == 2)
    best = best[np.argmax(found.scores[best])]
    pairs = sort_pairs(
        distances_to(found.codes[best], found.codes, 48), np.ones(len(found.codes)), None
    )

    def rows_and_headline():
        answers = json.loads(out.read_text())["answers"]
        rows = [(answer["distance"], answer["objects"][0]["row"]) for answer in answers]
        return rows, capsys.readouterr().out.splitlines()[0].split("nearest of ")[1]

    rows, headline = rows_and_headline()
    assert rows == best_of_images(pairs, found.image_index)[:10]
    assert headline == f"{len(found.codes)} objects, by image, by 48-bit codes"
    result = json.loads(out.read_text())
    assert result["objects"][0]["box"] == pytest.approx(found.boxes[best].tolist(), abs=1e-3)
    with Image.open(grid) as image:
        assert image.width > 1500

    assert tool.main(arguments("--instance", "1", "--all-objects", "--json", str(out))) == 0
    assert rows_and_headline() == (pairs[:10], f"{len(found.codes)} objects by 48-bit codes")
    assert rows != pairs[:10]

    two = ["--box", "3,4,60,50", "--instance", "1", "--topk", "2"]
    assert tool.main(arguments(*two, "--save", str(grid), "--json", str(out))) == 0
    assert [len(answer["objects"]) for answer in json.loads(out.read_text())["answers"]] == [2, 2]
    printed = capsys.readouterr()
    assert printed.err == ""
    first, head, *lines = printed.out.splitlines()[-4:]
    assert ", 3,4,60,50, " in first
    assert head.split() == ["rank", "distance", "image", "object", "1", "object", "2"]
    assert len(lines) == 2


def test_reranked_table(tool, arguments, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert tool.main(arguments("--rerank", "8", "--topk", "4", "--json", str(out))) == 0
    answers = json.loads(out.read_text())["answers"]
    squares = [answer["fine_distance"] for answer in answers]
    assert squares == sorted(squares)
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split()[2] for line in lines] == [f"({square:.2f})" for square in squares]


def test_tables_and_pictures_by_class(tool, workspace, arguments, tmp_path, monkeypatch, capsys):
    """The small network sees nothing for sure, so it is made to."""
    out, grid = tmp_path / "out.json", tmp_path / "grid.png"
    options = ["--group-by-class", "--topk", "3", "--json", str(out), "--save", str(grid)]
    monkeypatch.setattr(RegionDHSearcher, "_seen_classes", lambda *_: ())
    assert tool.main(arguments(*options)) == 1
    assert "the network is sure of no class in it; search without --group" in error_of(capsys)
    assert os.listdir(tmp_path) == []

    items = read_codes(workspace / "codes.h5")
    found = [items.class_names[c] for c in np.unique(items.instances.classes)[:2]]
    monkeypatch.setattr(RegionDHSearcher, "_seen_classes", lambda *_: tuple(found))
    assert tool.main(arguments(*options)) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    results = json.loads(out.read_text())
    assert [result["class_name"] for result in results] == found
    assert all(result["answers"] for result in results)
    heads = [line for line in printed.out.splitlines() if "nearest of" in line]
    assert [line.rsplit(", ", 1)[1] for line in heads] == [f"{name} alone" for name in found]
    with Image.open(grid) as image:
        tall = image.height
    assert tool.main(arguments("--topk", "3", "--save", str(grid))) == 0
    with Image.open(grid) as image:
        assert tall > 1.5 * image.height


def test_a_table_without_answers(tool):
    nothing = SearchResult("q.jpg", (), None, "sofa", 60, BITS, ())
    assert tool.format_table(nothing) == "nothing of class sofa found"
    assert tool.format_table(replace(nothing, class_name=None)) == "none found"


def test_from_folder(random_network, workspace):
    config, opts, index = random_network.config, random_network.opts, workspace / "index"
    searcher = RegionDHSearcher.from_folder(index, config, opts, engine="faiss")
    assert searcher.notes == []
    name = searcher.folder.items.file_names[4]
    assert searcher.search(name, topk=1).answers[0].file_name == name
    opts = [*opts, "INPUT.MIN_SIZE_TEST", "96"]
    (note,) = RegionDHSearcher.from_folder(index, config, opts).notes
    assert (
        note == "the index was coded with another INPUT.MIN_SIZE_TEST than 96: distances may be off"
    )


def test_queries_are_read_as_the_indexed_images_were(random_network, workspace):
    folder = read_index_folder(workspace / "index")
    settings = folder.items.settings.replace("IMAGE_READER 2", "IMAGE_READER 1")
    settings = settings.replace(f"MAX_PIXELS {DEFAULT_MAX_PIXELS}", "MAX_PIXELS 5000")
    folder = replace(folder, items=replace(folder.items, settings=settings))
    cfg = build_cfg(random_network.config, random_network.opts)
    searcher = RegionDHSearcher.from_cfg(folder, cfg)
    assert len(searcher.notes) == 1  # of the older reader alone
    assert "extract_codes.py --resume" in searcher.notes[0]
    name = next(name for name in folder.items.file_names if name.endswith(".jpg"))
    limited = ImageLoader(cfg)
    limited.max_pixels = 5000
    assert not torch.equal(limited(name)["image"], ImageLoader(cfg)(name)["image"])
    expected = searcher._model.inference([limited(name)])[0]["image_code"]
    assert np.array_equal(unpack_codes(searcher.encode(name).codes, len(expected))[0], expected)


def test_another_model_is_refused(tool, random_network, workspace, arguments, tmp_path, capsys):
    weights = torch.load(random_network.weights)["model"]
    name = next(key for key in weights if "image_hash" in key and key.endswith("bias"))
    weights[name] = weights[name] + 1
    torch.save({"model": weights}, tmp_path / "other.pth")
    opts = ["MODEL.WEIGHTS", str(tmp_path / "other.pth")]
    out = tmp_path / "out.json"
    assert tool.main(arguments("--json", str(out), opts=opts)) == 1
    error = error_of(capsys)
    own = read_index_folder(workspace / "index").items.model_fingerprint
    assert error.startswith(
        f"error: {workspace / 'index'}: was coded by model {own[:12]}, the query"
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--query", "absent.jpg"], "absent.jpg: No such file or directory"),
        (["--index", "absent"], "absent: no index folder; build one with tools/build_index.py"),
        (["--box", "900,900,950,950"], "box 900,900,950,950 is outside"),
        (["--box", "9,9,3,3"], "box 9,9,3,3 is empty"),
        (["--instance", "999"], "there is no detection 999"),
        (["--instance", "1", "--rerank", "5"], "rerank is for whole images"),
        (["--rerank", "5", "--rerank-by", "features"], "the index has none; extract its codes"),
        (["--class", "unicorn"], "class 'unicorn' is not known"),
        (["--save", "grid.xyz"], "grid.xyz: '.xyz' is no image format; use .png"),
    ],
)
def test_failures_are_one_line(tool, arguments, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert tool.main(arguments(*options)) == 1
    assert message in error_of(capsys)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--box", "1,2,3"], "--box: 1,2,3 is not x1,y1,x2,y2"),
        (["--box", "a,b,c,d"], "--box: invalid box value: 'a,b,c,d'"),
        (["--instance", "0"], "--instance: 0"),
        (["--topk", "0"], "--topk: 0"),
        (["--rerank", "5", "--rerank-by", "color"], "invalid choice: 'color'"),
        (["--rerank-by", "activations"], "give --rerank N, too"),
        (["--group-by-class", "--instance", "1"], "--group-by-class is for whole images"),
        (["--group-by-class", "--box", "1,2,3,4"], "--group-by-class is for whole images"),
        (["--group-by-class", "--class", "cat"], "--group-by-class is for whole images"),
        (["--group-by-class", "--all-objects"], "--all-objects is for a query of one object"),
        (["--all-objects"], "--all-objects is for a query of one object"),
        (
            ["--all-objects", "--instance", "1", "--box", "1,2,3,4"],
            "--all-objects is for a query of one object",
        ),
    ],
)
def test_wrong_arguments_exit_2(tool, arguments, capsys, wrong, message):
    with pytest.raises(SystemExit) as error:
        tool.main(arguments(*wrong))
    assert error.value.code == 2
    assert message in capsys.readouterr().err
