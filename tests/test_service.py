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
from regiondh_d2.retrieval.thresholds import calibrate_index
from regiondh_d2.structures.code_rows import take_rows
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
    with pytest.raises(ValueError, match="topk must be a positive integer, not -3"):
        search_index(folder, query, -3)
    with pytest.raises(ValueError, match="rerank must be a positive integer, not 0"):
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
        ({"topk": 0}, 0, "topk must be a positive integer, not 0"),
        ({"rerank": 0}, 0, "rerank must be a positive integer, not 0"),
        ({"topk": 2.5}, 0, "topk must be a positive integer, not 2.5"),
        ({"topk": None}, 0, "topk must be a positive integer, not None"),
        ({"rerank": "3"}, 0, "rerank must be a positive integer, not '3'"),
        ({"class_name": ["cat"]}, 0, "'cat'. is no name of a class"),
        ({"rerank": 5}, 1, "rerank is for whole images"),
        ({"rerank": 5, "rerank_by": "features"}, 0, "rerank by features: the index has none"),
        ({"rerank": 5, "rerank_by": "color"}, 0, "'color' isn't one of activations, features"),
        ({"all_objects": True}, 2, "all_objects is for a query of one object"),
        ({"class_name": "cow"}, 0, "class 'cow' is not known: use one of cat, dog, sofa"),
        ({"within": ["elsewhere"]}, 0, "elsewhere: the index .* has no photo in this folder"),
        ({"within": ""}, 0, "within must be a folder or several, not ''"),
        ({"within": ["a", None]}, 0, "within must be a folder or several, not None"),
        ({"within": 5}, 0, "within must be a folder or several, not 5"),
        ({"rerank_by": "classes"}, 0, "rerank_by needs rerank"),
        ({"exclude_self": "no"}, 0, "exclude_self must be True or False, not 'no'"),
        ({"check_files": None}, 0, "check_files must be True or False, not None"),
        ({"fold_duplicates": 1}, 0, "fold_duplicates must be True or False, not 1"),
        ({"all_objects": "yes"}, 1, "all_objects must be True or False, not 'yes'"),
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


def rows_of(result):
    return [(answer.distance, answer.row) for answer in result.answers]


@pytest.mark.parametrize("topk", [3, 60])
def test_answers_up_to_a_distance(folder, topk):
    """They are the first ones of a search without a limit."""
    image = Query("q.jpg", queries(1, BITS), activation=np.full(BITS, 0.3, np.float32))
    one = Query("q.jpg", queries(1, INSTANCE_BITS), (BOX,))
    two = Query("q.jpg", queries(2, INSTANCE_BITS), (BOX, BOX))
    for query in (image, one, two):
        every = rows_of(search_index(folder, query, 60))
        for most in (0, every[4][0], every[-1][0]):
            found = search_index(folder, query, topk, max_distance=most)
            assert rows_of(found) == [pair for pair in every if pair[0] <= most][:topk]
            assert found.as_dict()["max_distance"] == most
    found = search_index(folder, image, 60, rerank=60, max_distance=5)
    assert {row for _, row in rows_of(found)} == {
        row for distance, row in rows_of(search_index(folder, image, 60)) if distance <= 5
    }
    for most in (-1, 2.5, "near", "3", float("nan"), float("inf"), True, []):
        with pytest.raises(
            RegionDHError, match="max_distance must be auto or a whole number of at least 0, not"
        ):
            search_index(folder, image, max_distance=most)


def test_a_calibrated_distance(tmp_path):
    folder = write_index_folder(tmp_path / "index", make_items(found=70), engine="numpy")
    query = Query("q.jpg", queries(1, BITS))
    found = search_index(folder, query, 60, max_distance="auto")
    assert found.threshold == calibrate_index(folder.items)
    assert found.max_distance == found.threshold.distance
    assert found.as_dict()["threshold"]["pairs"] == found.threshold.pairs
    assert all(answer.distance <= found.max_distance for answer in found.answers)
    one = Query("q.jpg", queries(1, INSTANCE_BITS), (BOX,))
    found = search_index(folder, one, max_distance="auto")
    assert found.threshold == calibrate_index(folder.items, "instance")
    two = Query("q.jpg", queries(2, INSTANCE_BITS), (BOX, BOX))
    with pytest.raises(RegionDHError, match="max_distance auto is for an image or one object"):
        search_index(folder, two, max_distance="auto")


def test_options_that_are_not_used_leave_no_trace(folder):
    values = search_index(folder, Query("q.jpg", queries(1, BITS)), 2).as_dict()
    assert not {"max_distance", "threshold", "folded"} & set(values)
    assert all("copies" not in answer for answer in values["answers"])


@pytest.fixture
def with_copies(tmp_path):
    """Photos 3 to 14 are of one content and code, and 20 and 21 of another."""
    contents = np.random.default_rng(0).integers(1, 256, (60, 32), dtype=np.uint8)
    contents[3:15], contents[21] = contents[3], contents[20]
    codes = make_items().codes.copy()
    codes[3:15], codes[21] = codes[3], codes[20]
    items = replace(make_items(content_sha256=contents), codes=codes)
    return write_index_folder(tmp_path / "index", items, engine="numpy")


@pytest.mark.parametrize("topk", [1, 4, 60])
def test_copies_fill_one_answer(with_copies, topk):
    items = with_copies.items
    query = Query("q.jpg", items.codes[3:4])
    every = rows_of(search_index(with_copies, query, 60))
    expected = [pair for pair in every if pair[1] not in {*range(4, 15), 21}][:topk]
    found = search_index(with_copies, query, topk, fold_duplicates=True)
    assert rows_of(found) == expected
    for answer in found.answers:
        rows = {3: range(4, 15), 20: [21]}.get(answer.row, [])
        assert answer.copies == tuple(items.file_names[row] for row in rows)
    assert found.as_dict()["answers"][0]["copies"] == found.answers[0].copies
    one = Query("q.jpg", items.instances.codes[:1], (BOX,))
    every = [row for _, row in rows_of(search_index(with_copies, one, 60))]
    folded = [row for _, row in rows_of(search_index(with_copies, one, 60, fold_duplicates=True))]
    first = next(row for row in every if 3 <= row < 15)
    pair = next(row for row in every if row in (20, 21))
    others = ({*range(3, 15), 20, 21}) - {first, pair}
    assert folded == [row for row in every if row not in others]


def test_the_query_itself_is_left_out(with_copies):
    items = with_copies.items
    content = items.content_sha256[20].tobytes()
    name = items.file_names[5]
    for query, own in (
        (Query("elsewhere.jpg", items.codes[20:21], content_sha256=content), {20, 21}),
        (Query(name, items.codes[5:6]), {5}),
        (Query("elsewhere.jpg", items.codes[7:8]), set()),
    ):
        every = rows_of(search_index(with_copies, query, 60))
        found = search_index(with_copies, query, 60, exclude_self=True)
        assert {row for _, row in rows_of(found)} == {row for _, row in every} - own
    one = Query(name, items.instances.codes[:1], (BOX,))
    assert 5 not in {
        row for _, row in rows_of(search_index(with_copies, one, 60, exclude_self=True))
    }
    two = Query(name, items.instances.codes[:2], (BOX, BOX))
    assert 5 not in {
        row for _, row in rows_of(search_index(with_copies, two, 60, exclude_self=True))
    }
