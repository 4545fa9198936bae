"""The order of answers: at equal distance the query itself is first, then its copies, then rows."""

import shutil

import numpy as np
import pytest

from builders import code_set
from photo_index import (  # noqa: F401, the fixtures
    DISTANCES,
    SEARCHES,
    ZERO,
    expected_rows,
    make_items,
    path_of,
    photo_folder,
    photo_root,
    query_of,
    rows,
)
from regiondh_d2.retrieval.index_folder import write_index_folder
from regiondh_d2.retrieval.queries import Query
from searching import search_index


@pytest.mark.parametrize("what", SEARCHES)
@pytest.mark.parametrize("topk", [1, 2, 3, 4, 7, 10, 50])
def test_the_same_content_is_first_at_equal_distance(folder, root, what, topk):
    objects, options = SEARCHES[what]
    for query, copy in ((5, None), (6, 3), (3, 6), (9, None), (1, None)):
        result = search_index(folder, query_of(root, query, objects), topk, **options)
        assert rows(result) == expected_rows(query, copy)[:topk]


def test_every_object_of_the_same_content_is_first_at_equal_distance(folder, root):
    found = [
        (d + e, i != 6, i != 3, 2 * i + (e > 0)) for i, d in enumerate(DISTANCES) for e in (0, 3)
    ]
    for topk in (1, 2, 5, 99):
        result = search_index(folder, query_of(root, 6, 1), topk, all_objects=True)
        answers = [(a.distance, a.objects[0].row) for a in result.answers]
        assert answers == [(key[0], key[-1]) for key in sorted(found)][:topk]


def test_a_copy_elsewhere_finds_its_content_first(folder, root, tmp_path):
    copy = tmp_path / "copy of 6.jpg"
    shutil.copy(path_of(root, 6), copy)
    query = query_of(root, 6)
    query = Query(str(copy), query.codes, content_sha256=query.content_sha256)
    assert rows(search_index(folder, query, 4)) == [3, 6, 1, 5]
    assert search_index(folder, query, 4).labels == ()


def test_where_contents_are_unknown_the_same_file_is_first(root, tmp_path, monkeypatch):
    items = make_items(root, content_sha256=None)
    folder = write_index_folder(tmp_path / "index", items, engine="numpy")
    for query in (query_of(root, 6), query_of(root, 6, content_sha256=None)):
        assert rows(search_index(folder, query, 4)) == [6, 1, 3, 5]
    monkeypatch.chdir(root)
    link = tmp_path / "link"
    link.symlink_to(root)
    for name in ("a/6.jpg", "b/../a/6.jpg", str(link / "a" / "6.jpg")):
        assert rows(search_index(folder, Query(name, ZERO), 4)) == [6, 1, 3, 5]
    assert rows(search_index(folder, Query("6.jpg", ZERO), 4)) == [1, 3, 5, 6]


def test_contents_that_are_unknown_of_some_rows(root, tmp_path):
    items = make_items(root)
    items.content_sha256[[1, 6]] = 0
    folder = write_index_folder(tmp_path / "index", items, engine="numpy")
    assert rows(search_index(folder, query_of(root, 6), 4)) == [6, 3, 1, 5]
    assert rows(search_index(folder, query_of(root, 3), 4)) == [3, 1, 5, 6]
    # No content is zeros.
    assert rows(search_index(folder, query_of(root, 5, content_sha256=bytes(32)), 4)) != [1, 6]


def test_an_edited_query_is_not_what_it_was(folder, root):
    path_of(root, 5).write_bytes(b"PHOTO 5")
    result = search_index(folder, query_of(root, 5), 4, check_files=False)
    assert rows(result) == [1, 3, 5, 6]
    assert result.labels is None
    result = search_index(folder, query_of(root, 5), 4)
    assert rows(result) == [1, 3, 6, 0]
    assert (result.gone, result.changed) == (0, 1)


def test_removed_rows_of_the_same_content_stay_removed(folder, root):
    folder.index("image").remove(np.array([6]))
    assert rows(search_index(folder, query_of(root, 6), 4)) == [3, 1, 5, 0]


def test_random_codes_against_a_sort(tmp_path):
    """Few distances, many copies: the first k of the whole list by our order, for each k."""
    rng = np.random.default_rng(0)
    for engine in ("numpy", "faiss"):
        count = 200
        contents = rng.integers(0, 256, (20, 32), dtype=np.uint8)[rng.integers(0, 20, count)]
        codes = rng.integers(0, 8, (count, 1), dtype=np.uint8)
        items = code_set(codes, content_sha256=contents)
        folder = write_index_folder(tmp_path / engine, items, engine=engine)
        for row in (0, 77, 199):
            distances = np.bitwise_count(items.codes[:, 0] ^ 5)
            same = (contents == contents[row]).all(axis=1)
            expected = sorted(range(count), key=lambda i: (distances[i], not same[i], i))
            query = Query(
                "q.jpg", np.array([[5]], np.uint8), content_sha256=contents[row].tobytes()
            )
            for topk in (1, 3, 10, 60, 199, 200):
                assert rows(search_index(folder, query, topk)) == expected[:topk]
