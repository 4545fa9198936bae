"""The search service: what it refuses and knows, many threads, and folders that grow."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from builders import code_set
from regiondh_d2.retrieval.index_file import IndexFileError
from regiondh_d2.retrieval.index_folder import IndexFolder, write_index_folder
from regiondh_d2.retrieval.queries import Query, SearchOptions
from regiondh_d2.retrieval.service import SearchService, SnapshotHolder
from regiondh_d2.structures.codes import take_rows
from regiondh_d2.utils.errors import RegionDHError
from searching import BITS, BOX, INSTANCE_BITS, make_items, queries, search_index


@pytest.fixture(params=["faiss", "numpy"])
def folder(request, tmp_path):
    return write_index_folder(tmp_path / "index", make_items(), engine=request.param)


def test_all_objects_answer_to_one_object_alone(folder):
    for codes, objects in ((queries(1, BITS), ()), (queries(2, INSTANCE_BITS), (BOX, BOX))):
        with pytest.raises(ValueError, match="all_objects is for a query of one object: give one"):
            search_index(folder, Query("q.jpg", codes, objects), all_objects=True)


def test_numbers_below_one(folder):
    query = Query("q.jpg", queries(2, INSTANCE_BITS), (BOX, BOX))
    with pytest.raises(ValueError, match="topk must be at least 1, not -3"):
        search_index(folder, query, -3)
    with pytest.raises(ValueError, match="rerank must be at least 1, not 0"):
        search_index(folder, query, 3, rerank=0)


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


def test_rows_like_a_query_are_found_by_a_plain_comparison(tmp_path):
    rng = np.random.default_rng(1)
    contents = rng.integers(0, 2, (500, 32), dtype=np.uint8)
    contents[300:] = contents[rng.integers(0, 300, 200)]
    items = code_set(np.zeros((500, 1), np.uint8), content_sha256=contents)
    folder = SearchService(IndexFolder(tmp_path, {}, items))
    for row in range(0, 500, 7):
        expected = [i for i in range(500) if contents[i].tobytes() == contents[row].tobytes()]
        same_file, same_content = folder.rows_like("q.jpg", contents[row].tobytes())
        assert (same_file.tolist(), same_content.tolist()) == ([], expected)
        same_file, same_content = folder.rows_like(f"{row}.jpg", contents[row].tobytes())
        assert same_file.tolist() == [row]
        assert same_content.tolist() == [i for i in expected if i != row]
    assert [len(found) for found in folder.rows_like("q.jpg", bytes(range(32)))] == [0, 0]


# --------------------------------------------------------------------------------------------------
# What is refused before there is a query


@pytest.mark.parametrize(
    ("options", "objects", "message"),
    [
        ({"topk": 0}, 0, "topk must be at least 1, not 0"),
        ({"rerank": 0}, 0, "rerank must be at least 1, not 0"),
        ({"rerank": 5}, 1, "rerank is for whole images"),
        ({"rerank": 5, "rerank_by": "features"}, 0, "rerank by features: the index has none"),
        ({"rerank": 5, "rerank_by": "color"}, 0, "'color' isn't one of activations, features"),
        ({"all_objects": True}, 2, "all_objects is for a query of one object"),
        ({"class_name": "cow"}, 0, "class 'cow' is not known: use one of cat, dog, sofa"),
        ({"within": ["elsewhere"]}, 0, "elsewhere: the index .* has no photo in this folder"),
    ],
)
def test_what_no_query_can_be_asked(folder, options, objects, message):
    """The same by the check alone, and by a search."""
    service, options = SearchService(folder), SearchOptions(**options)
    bits = INSTANCE_BITS if objects else BITS
    query = Query("q.jpg", queries(max(1, objects), bits), (BOX,) * objects)
    for ask in (lambda: service.check(options, objects), lambda: service.search(query, options)):
        with pytest.raises(RegionDHError, match=message):
            ask()


def test_what_can_be_asked_is_not_refused(folder):
    service = SearchService(folder)
    service.check(SearchOptions(class_name="cat", rerank=5))
    service.check(SearchOptions(all_objects=True, class_name="cat"), 1)
    service.check(SearchOptions(), by_class=True)


def test_an_index_of_images_alone(tmp_path):
    items = make_items(instances=None)
    service = SearchService(write_index_folder(tmp_path / "index", items, engine="numpy"))
    service.check(SearchOptions())
    with pytest.raises(IndexFileError, match="has no level 'instance'"):
        service.check(SearchOptions(), 1)
    with pytest.raises(RegionDHError, match="answers by class: the index has no detected objects"):
        service.check(SearchOptions(), by_class=True)


# --------------------------------------------------------------------------------------------------
# Threads, and folders that grow


def test_threads_that_ask_at_once_get_the_answers_that_they_get_alone(folder):
    """A new service, so that filters of classes and folders are made while others search."""
    folder.items.file_names[:] = [f"/photos/{'ab'[i % 2]}/{i}.jpg" for i in range(60)]
    activation = np.random.default_rng(2).random(BITS).astype(np.float32)
    image = Query("q.jpg", queries(1, BITS), activation=activation)
    one = Query("/photos/a/2.jpg", queries(1, INSTANCE_BITS), (BOX,))
    two = Query("q.jpg", queries(2, INSTANCE_BITS), (BOX, BOX))
    asked = [
        (query, SearchOptions(topk, class_name, within=within, check_files=False, **more))
        for query, more in ((image, {}), (image, {"rerank": 20}), (one, {}), (two, {}))
        for topk in (1, 7, 60)
        for class_name in (None, "cat")
        for within in ((), ("/photos/a",))
    ]
    alone = [SearchService(folder).search(query, options) for query, options in asked]
    assert len(set(map(str, alone))) > 30

    service = SearchService(folder)
    with ThreadPoolExecutor(12) as pool:
        for _ in range(3):
            found = list(pool.map(lambda one: service.search(*one), asked))
            assert found == alone


def test_a_snapshot_read_from_disk_cannot_be_changed(tmp_path):
    write_index_folder(tmp_path / "index", make_items(), engine="numpy")
    items = SearchService.open(tmp_path / "index").folder.items
    for values in (items.codes, items.labels, items.instances.codes, items.instances.boxes):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 0


def test_a_folder_that_grows_is_opened_anew_and_once(tmp_path, monkeypatch):
    """Readers keep the snapshot that they have."""
    path, items = tmp_path / "index", make_items()
    write_index_folder(path, take_rows(items, range(20)), engine="numpy")
    holder = SnapshotHolder(path)
    first = holder.current()
    assert holder.current() is first
    query = Query("q.jpg", queries(1, BITS))
    before = first.search(query)

    write_index_folder(path, items, engine="numpy")
    opened, real = [], SearchService.open
    monkeypatch.setattr(
        SearchService, "open", lambda *arguments: opened.append(1) or real(*arguments)
    )
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: holder.current(), range(20)))
    second = holder.current()
    assert len(opened) == 1
    assert second in found <= {first, second}
    assert (len(first.folder.items), len(second.folder.items)) == (20, 60)
    assert first.search(query) == before
    assert second.search(query).searched == 60


def test_a_folder_that_is_made_again_from_nothing_is_opened_anew(tmp_path):
    """Its generation has the same number, and its record says the same."""
    path = tmp_path / "index"
    write_index_folder(path, make_items(), engine="numpy")
    holder = SnapshotHolder(path)
    other = make_items(image_ids=[f"other {i}" for i in range(60)])
    record = (path / "index.json").read_bytes()
    path.rename(tmp_path / "old")
    with pytest.raises(IndexFileError, match="no index folder"):
        holder.current()
    write_index_folder(path, other, engine="numpy")
    assert (path / "index.json").read_bytes() == record
    assert holder.current().folder.items.image_ids[0] == "other 0"


def test_a_new_generation_that_is_damaged_is_told_until_it_is_whole(tmp_path):
    path = tmp_path / "index"
    write_index_folder(path, make_items(), engine="numpy")
    holder = SnapshotHolder(path)
    first = holder.current()
    write_index_folder(path, make_items(images=70), engine="numpy")
    whole = (path / "codes-2.h5").read_bytes()
    (path / "codes-2.h5").write_bytes(whole[:1000])
    for _ in range(2):
        with pytest.raises(RegionDHError, match="codes-2.h5: not a readable"):
            holder.current()
    assert len(first.search(Query("q.jpg", queries(1, BITS))).answers) == 10
    (path / "codes-2.h5").write_bytes(whole)
    assert len(holder.current().folder.items) == 70
