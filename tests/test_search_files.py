"""Answers from photos as they are now: what has gone or changed is left out."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from builders import code_set, photo_code_set
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
from regiondh_d2.retrieval import photo_state
from regiondh_d2.retrieval.index_file import IndexFileError
from regiondh_d2.retrieval.index_folder import read_index_folder, write_index_folder
from regiondh_d2.retrieval.queries import Query
from searching import search_by_class, search_index


@pytest.mark.parametrize("what", SEARCHES)
def test_photos_that_have_gone_are_replaced_by_the_next(folder, root, what):
    objects, options = SEARCHES[what]
    path_of(root, 1).unlink()
    path_of(root, 3).write_bytes(b"other content")
    path_of(root, 9).unlink()
    query = query_of(root, 5, objects)
    expected = expected_rows(5, without={1, 3, 9})
    for topk in (1, 2, 5, 7, 50):
        result = search_index(folder, query, topk, **options)
        assert rows(result) == expected[:topk]
        # Those that would have answered are counted, and no others.
        if topk == 1:
            assert (result.gone, result.changed) == (0, 0)
            assert result.notes() == []
        elif topk == 50:
            assert (result.gone, result.changed) == (2, 1)
            (line,) = result.notes()
            assert line.startswith(
                "3 photos have gone or changed since they were encoded: left out"
            )
            assert "extract-codes --resume and build-index" in line
        else:
            assert (result.gone, result.changed) == (1, 1)
    assert result.as_dict()["gone"] == 2
    assert result.as_dict()["changed"] == 1


def test_only_files_of_answers_are_looked_at(folder, root, monkeypatch):
    looked = []
    real = os.stat

    def stat(path, **options):
        looked.append(os.fspath(path))
        return real(path, **options)

    monkeypatch.setattr(photo_state.os, "stat", stat)
    monkeypatch.setattr(photo_state, "file_sha256", None)
    search_index(folder, query_of(root, 5), 3, rerank=9)
    photos = [name for name in looked if name.endswith(".jpg")]
    assert len(set(photos)) <= 3 + 1  # and the query itself
    looked.clear()
    search_index(folder, query_of(root, 5), 3, check_files=False)
    assert set(looked) <= {str(path_of(root, 5))}


def test_a_shortlist_that_has_gone_is_made_longer(folder, root):
    for i in (1, 3, 5, 6):
        path_of(root, i).unlink()
    result = search_index(folder, query_of(root, 5), 3, rerank=4)
    assert rows(result) == [0, 8, 2]
    assert all(answer.fine_distance is not None for answer in result.answers)
    assert result.gone == 4


def test_touched_and_restored_photos_still_answer(folder, root):
    for i in range(len(DISTANCES)):
        os.utime(path_of(root, i), (1, 1))
    result = search_index(folder, query_of(root, 5), 10)
    assert rows(result) == expected_rows(5)
    assert result.notes() == []


def test_moved_within_the_root_is_gone_until_encoded_again(folder, root):
    path_of(root, 1).rename(root / "1.jpg")
    (root / "b").rename(root / "c")
    result = search_index(folder, query_of(root, 6), 10)
    assert rows(result) == expected_rows(6, 3, without={1, 3, 5, 7, 9})
    assert result.gone == 5


def test_all_photos_deleted(folder, root):
    for i in range(len(DISTANCES)):
        path_of(root, i).unlink()
    result = search_index(folder, query_of(root, 5), 3)
    assert rows(result) == []
    assert result.gone == 10
    assert result.notes() != []


@pytest.mark.parametrize("how", ["missing", "empty", "file"])
def test_a_root_that_is_away_is_told_and_changes_nothing(folder, root, tmp_path, how):
    before = {p.name: p.read_bytes() for p in (tmp_path / "index").iterdir()}
    root.rename(tmp_path / "elsewhere")
    if how == "empty":
        root.mkdir()
    elif how == "file":
        root.write_bytes(b"")
    for objects in (0, 1, 2):
        with pytest.raises(IndexFileError, match=f"^{root} is .*: plug the disk in") as error:
            search_index(folder, query_of(root, 5, objects), 3)
        assert f"--root {root}=NEW" in str(error.value)
    assert rows(search_index(folder, query_of(root, 5), 3, check_files=False)) == [5, 1, 3]
    assert {p.name: p.read_bytes() for p in (tmp_path / "index").iterdir()} == before
    # Its photos answer where they are now.
    new = tmp_path / "elsewhere"
    moved = read_index_folder(tmp_path / "index", "numpy", [f"{root}={new}"])
    assert rows(search_index(moved, query_of(new, 5), 3)) == [5, 1, 3]
    assert moved.items.file_names[0] == str(path_of(new, 0))


def test_one_of_two_roots_is_away(root, tmp_path):
    other = tmp_path / "disk"
    (root / "b").rename(other)
    names = [str(path_of(root, i) if i % 2 == 0 else other / f"{i}.jpg") for i in range(10)]
    (root / "b").symlink_to(other)  # while the items are made
    items = make_items(root)
    (root / "b").unlink()
    items = replace(
        items,
        file_names=names,
        roots=[str(root), str(other)],
        root_index=(np.arange(10) % 2).astype(np.uint16),
    )
    folder = write_index_folder(tmp_path / "index", items, engine="numpy")
    query = Query("q.jpg", ZERO)
    assert rows(search_index(folder, query, 4)) == [1, 3, 5, 6]
    shutil.rmtree(other)
    result = search_index(folder, query, 4)
    assert rows(result) == [6, 0, 8, 2]
    assert (result.gone, result.changed, result.away) == (0, 0, 3)
    (line,) = result.notes()
    assert line.startswith("3 photos left out, of which nothing is known now")
    assert f"{other} is not there" in line
    # Answers of the folder that is there don't ask for the other.
    inside = search_index(folder, query, 9, within=[root / "a"])
    assert rows(inside) == [6, 0, 8, 2, 4]
    assert inside.notes() == []


def test_a_copied_index_folder_answers_as_the_first(folder, root, tmp_path):
    shutil.copytree(tmp_path / "index", tmp_path / "backup" / "index")
    shutil.rmtree(tmp_path / "index")
    copied = read_index_folder(tmp_path / "backup" / "index", "numpy")
    assert rows(search_index(copied, query_of(root, 5), 10)) == expected_rows(5)


def test_an_index_copied_with_its_photos(folder, root, tmp_path):
    """A copy has other times; the content tells that it is the same photo."""
    new = tmp_path / "new disk"
    for path in root.rglob("*.jpg"):
        target = new / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        os.utime(target, (5, 5))
    shutil.rmtree(root)
    moved = read_index_folder(tmp_path / "index", "numpy", [f"{root}={new}"])
    result = search_index(moved, query_of(new, 5), 10)
    assert rows(result) == expected_rows(5)
    assert result.notes() == []


def test_older_codes_without_roots_and_sizes(root, tmp_path):
    """Absolute names can be looked at, and relative ones of datasets can't."""
    names = [str(path_of(root, i)) for i in range(10)]
    codes = make_items(root).codes
    write_index_folder(tmp_path / "old", code_set(codes, names=names), engine="numpy")
    old = read_index_folder(tmp_path / "old")
    path_of(root, 1).unlink()
    path_of(root, 3).write_bytes(b"other content, which nobody can know")
    result = search_index(old, Query("q.jpg", ZERO), 4)
    assert (rows(result), result.gone, result.changed) == ([3, 5, 6, 0], 1, 0)
    for folder in "ab":
        (root / folder / "0.txt").write_bytes(b"")
    root.rename(tmp_path / "elsewhere")
    result = search_index(old, Query("q.jpg", ZERO), 4)  # perhaps they were made elsewhere
    assert (rows(result), result.gone, result.away, result.unchecked) == ([1, 3, 5, 6], 0, 0, 4)
    (line,) = result.notes()
    assert line.startswith(f"whether these photos are still there is not known: {root} is not")
    moves = [f"{root}={tmp_path / 'elsewhere'}"]
    moved = read_index_folder(tmp_path / "old", moves=moves)
    assert rows(search_index(moved, Query("q.jpg", ZERO), 4)) == [3, 5, 6, 0]

    relative = [f"datasets/{i}.jpg" for i in range(10)]
    write_index_folder(tmp_path / "set", code_set(codes, names=relative), engine="numpy")
    result = search_index(read_index_folder(tmp_path / "set"), Query("q.jpg", ZERO), 4)
    assert (rows(result), result.notes()) == ([1, 3, 5, 6], [])


def test_names_that_are_not_utf8(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    names = [os.fsdecode(os.fsencode(root) + b"/" + name) for name in (b"\xe9.jpg", b"b\n.jpg")]
    for name in names:
        Path(name).write_bytes(os.fsencode(name))
    items = photo_code_set(names, np.zeros((2, 1), np.uint8), roots=[root], hashed=False)
    write_index_folder(tmp_path / "index", items, engine="numpy")
    folder = read_index_folder(tmp_path / "index")
    result = search_index(folder, Query(names[1], ZERO), 2)
    assert [answer.file_name for answer in result.answers] == names[::-1]
    assert json.loads(json.dumps(result.as_dict()))["answers"][1]["file_name"] == names[0]
    os.unlink(names[0])
    result = search_index(folder, Query(names[1], ZERO), 2)
    assert (len(result.answers), result.gone) == (1, 1)


@pytest.mark.parametrize("what", SEARCHES)
def test_answers_within_folders(folder, root, what):
    objects, options = SEARCHES[what]
    query = query_of(root, 6, objects)
    odd, even = {1, 3, 5, 7, 9}, {0, 2, 4, 6, 8}
    for within, others in (([root / "a"], odd), ([root / "b"], even), ([root / "b", root], set())):
        for topk in (2, 50):
            result = search_index(folder, query, topk, within=within, **options)
            assert rows(result) == expected_rows(6, 3, without=others)[:topk]
    if not objects:
        named = search_index(folder, query, 9, "cat", within=[root / "a"])
        assert rows(named) == expected_rows(6, 3, without=odd)


def test_a_folder_is_not_its_namesakes(folder, root, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(root / "a")
    monkeypatch.chdir(root)
    for within in ("a", "a/", "./b/../a", tmp_path / "link"):
        result = search_index(folder, query_of(root, 5), 9, within=[within])
        assert rows(result) == [6, 0, 8, 2, 4]
    for within in (tmp_path / "phot", root / "a" / "0", "nowhere"):
        with pytest.raises(IndexFileError, match="has no photo in this folder"):
            search_index(folder, query_of(root, 5), 9, within=[root, within])


def test_classes_within_folders(folder, root):
    query = query_of(root, 5, classes=("cat", "dog"))
    results = search_by_class(folder, query, 3, within=[root / "b"])
    assert [rows(result) for result in results] == [[5, 1, 3]] * 2
    path_of(root, 1).unlink()
    results = search_by_class(folder, query, 3, within=[root / "b"])
    assert [rows(result) for result in results] == [[5, 3, 7]] * 2
    assert [result.gone for result in results] == [1, 1]
    results = search_by_class(folder, query, 3, check_files=False)
    assert [rows(result) for result in results] == [[5, 1, 3]] * 2
