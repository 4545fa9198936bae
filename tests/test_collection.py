"""The photos of an index by id, their objects by number, and the cut-offs."""

import hashlib

import numpy as np
import pytest

from builders import object_codes
from regiondh_d2.retrieval.index_folder import write_index_folder
from regiondh_d2.retrieval.service import SearchService
from regiondh_d2.retrieval.thresholds import calibrate_index
from regiondh_d2.web.collection import SAME_RATE, Collection, Cutoffs, UnknownItemError, photo_id
from searching import make_items


def open_collection(folder, items):
    write_index_folder(folder / "index", items, engine="numpy")
    return Collection(SearchService.open(folder / "index"))


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    contents = np.random.default_rng(1).integers(0, 256, (60, 32), dtype=np.uint8)
    contents[0] = 0  # unknown
    items = make_items(activations=np.full((60, 20), 0.25, np.float16), content_sha256=contents)
    return open_collection(tmp_path_factory.mktemp("collection"), items)


def test_ids_tell_no_path(collection):
    name = "photos/7.jpg"
    assert collection.id_of(7) == photo_id(name)
    assert collection.id_of(7) == hashlib.sha256(name.encode()).hexdigest()[:16]
    assert collection.row(photo_id(name)) == 7
    assert len(collection) == len({collection.id_of(row) for row in range(60)}) == 60
    for other in ("", "7", "../../etc/passwd", name):
        with pytest.raises(UnknownItemError):
            collection.row(other)


def test_names_are_below_the_root(tmp_path):
    photos = tmp_path / "photos" / "sub"
    photos.mkdir(parents=True)
    items = make_items(images=20, found=30, roots=[str(tmp_path / "photos")])
    items.file_names = [str(photos / f"{i}.jpg") for i in range(20)]
    collection = open_collection(tmp_path, items)
    assert collection.name(3) == "sub/3.jpg"
    assert collection.short_name(str(photos / "3.jpg")) == "sub/3.jpg"
    assert collection.short_name("/elsewhere/a.jpg") == "a.jpg"


def test_objects_are_numbered_by_score(collection):
    found = collection.items.instances
    for row in range(60):
        own = np.flatnonzero(found.image_index == row)
        expected = sorted(own, key=lambda i: -found.scores[i])
        assert collection.instances_of(row).tolist() == expected
        assert [collection.number_of(i) for i in expected] == [*range(1, len(own) + 1)]
        objects = collection.objects(row)
        assert [one.score for one in objects] == [found.scores[i] for i in expected]
        assert [one.class_name for one in objects] == [
            collection.items.class_names[found.classes[i]] for i in expected
        ]


def test_queries_have_the_stored_codes(collection):
    items = collection.items
    whole = collection.query(7)
    assert whole.codes.tolist() == items.codes[7:8].tolist()
    assert whole.objects == ()
    assert whole.activation.dtype == np.float32
    assert whole.content_sha256 == items.content_sha256[7].tobytes()
    assert collection.query(0).content_sha256 is None
    row = int(items.instances.image_index[0])
    count = len(collection.instances_of(row))
    query = collection.query(row, (count, 1))
    rows = collection.instances_of(row)[[count - 1, 0]]
    assert query.codes.tolist() == items.instances.codes[rows].tolist()
    assert query.objects == (collection.objects(row)[-1], collection.objects(row)[0])
    for number in (0, count + 1, -1):
        with pytest.raises(UnknownItemError, match=f"object {number}"):
            collection.query(row, (number,))
    with pytest.raises(UnknownItemError):
        collection.query(59, (1,))  # has none


def test_classes_are_counted_by_photo(collection):
    found, names = collection.items.instances, collection.items.class_names
    expected = {
        name: len({i for i, c in zip(found.image_index, found.classes, strict=True) if c == n})
        for n, name in enumerate(names)
    }
    counts = collection.class_counts()
    assert counts == expected
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    for name in names:
        assert len(collection.rows_with(name)) == expected[name]
    with pytest.raises(UnknownItemError):
        collection.rows_with("unicorn")


def test_cutoffs_are_calibrated_on_the_index(tmp_path):
    collection = open_collection(tmp_path, make_items(images=200, found=250))
    for granularity in ("image", "instance"):
        found = collection.cutoffs(granularity)
        assert found.similar == calibrate_index(collection.items, granularity).distance
        strict = calibrate_index(collection.items, granularity, max_rate=SAME_RATE)
        assert found.same == strict.distance <= found.similar
    assert [Cutoffs(2, 5).band(distance) for distance in (0, 2, 3, 5, 6)] == [
        *("same", "same", "similar", "similar", "far"),
    ]


def test_without_objects_there_are_fewer_things_to_say(tmp_path):
    collection = open_collection(tmp_path, make_items(instances=None))
    assert collection.objects(0) == []
    assert collection.class_counts() == {}
    assert collection.cutoffs("image") is None
    with pytest.raises(UnknownItemError):
        collection.query(0, (1,))


def test_photos_may_have_no_object_at_all(tmp_path):
    none = object_codes(np.empty((0, 12), bool), [])
    collection = open_collection(tmp_path, make_items(instances=none))
    assert collection.objects(5) == []
    assert collection.class_counts() == {}
