"""Answers from photos as they are now: what has gone or changed is left out, the query is first."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regiondh_d2.engine import searcher
from regiondh_d2.retrieval import photo_state
from regiondh_d2.retrieval.hamming_index import IndexFileError
from regiondh_d2.retrieval.index_folder import IndexFolder, read_index_folder, write_index_folder
from regiondh_d2.retrieval.search import Query, QueryObject, search_by_class, search_index
from regiondh_d2.structures.codes import CodeSet, InstanceCodes

BITS = 8
BOX = QueryObject((1.0, 2.0, 3.0, 4.0))
# Codes of the photos: how far each is from the code 0. There are four at distance 0.
DISTANCES = [1, 0, 2, 0, 3, 0, 0, 2, 1, 4]
ZERO = np.zeros((1, 1), np.uint8)


def code_at(distance):
    return (1 << distance) - 1


@pytest.fixture
def root(tmp_path):
    """Ten photos; those of rows 3 and 6 are copies of each other."""
    for i in range(len(DISTANCES)):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"photo %d" % (3 if i == 6 else i))
    return tmp_path / "photos"


def path_of(root, i):
    return root / "ab"[i % 2] / f"{i}.jpg"


def make_items(root, **changes):
    """Each photo has two objects: one at the photo's distance, and one 3 further."""
    count = len(DISTANCES)
    names = [str(path_of(root, i)) for i in range(count)]
    stats = [os.stat(name) for name in names]
    contents = [list(hashlib.sha256(Path(name).read_bytes()).digest()) for name in names]
    values = {
        "codes": np.array([[code_at(d)] for d in DISTANCES], np.uint8),
        "bits": BITS,
        "image_ids": names,
        "file_names": names,
        "labels": np.eye(count, dtype=np.uint8)[:, :3],
        "class_names": ["cat", "dog", "sofa"],
        "roots": [str(root)],
        "size": np.array([s.st_size for s in stats]),
        "mtime_ns": np.array([s.st_mtime_ns for s in stats]),
        "content_sha256": np.array(contents, np.uint8),
        "instances": InstanceCodes(
            codes=np.array([[code_at(d + e)] for d in DISTANCES for e in (0, 3)], np.uint8),
            bits=BITS,
            image_index=np.repeat(np.arange(count), 2),
            boxes=np.zeros((2 * count, 4), np.float32),
            scores=np.zeros(2 * count, np.float32),
            classes=np.tile([0, 1], count),
        ),
    }
    return CodeSet(**(values | changes))


@pytest.fixture(params=["numpy", "faiss"])
def folder(request, root, tmp_path):
    return write_index_folder(tmp_path / "index", make_items(root), engine=request.param)


def query_of(root, i, objects=0, **changes):
    """The query that is photo ``i``'s file, with the code 0 whatever the photo's own is."""
    name = str(path_of(root, i))
    values = {"activation": np.full(BITS, 0.1, np.float32)}
    if Path(name).exists():
        values["content_sha256"] = hashlib.sha256(Path(name).read_bytes()).digest()
    return Query(name, np.repeat(ZERO, max(1, objects), 0), (BOX,) * objects, **values | changes)


def rows(result):
    return [answer.row for answer in result.answers]


def expected_rows(itself=None, copy=None, without=()):
    """The oracle: rows by (distance, not same file, not same content, row)."""
    keys = [(d, i != itself, i != copy, i) for i, d in enumerate(DISTANCES) if i not in without]
    return [key[-1] for key in sorted(keys)]


# --------------------------------------------------------------------------------------------------
# The query itself, or its content, first


SEARCHES = {
    "images": (0, {}),
    "reranked": (0, {"rerank": 4}),
    "reranked, all": (0, {"rerank": 99}),
    "one object": (1, {}),
    "several objects": (2, {}),
}


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
    folder.level("image").remove(np.array([6]))
    assert rows(search_index(folder, query_of(root, 6), 4)) == [3, 1, 5, 0]


def test_random_codes_against_a_sort(tmp_path):
    """Few distances, many copies: the first k of the whole list by our order, for each k."""
    rng = np.random.default_rng(0)
    for engine in ("numpy", "faiss"):
        count = 200
        contents = rng.integers(0, 256, (20, 32), dtype=np.uint8)[rng.integers(0, 20, count)]
        items = CodeSet(
            codes=rng.integers(0, 8, (count, 1), dtype=np.uint8),
            bits=BITS,
            image_ids=[str(i) for i in range(count)],
            file_names=[f"{i}.jpg" for i in range(count)],
            content_sha256=contents,
        )
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


# --------------------------------------------------------------------------------------------------
# Photos that have gone or changed


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
    items = CodeSet(
        **{name: getattr(items, name) for name in items.__dataclass_fields__}
        | {
            "file_names": names,
            "roots": [str(root), str(other)],
            "root_index": (np.arange(10) % 2).astype(np.uint16),
        }
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
    plain = {"codes": make_items(root).codes, "bits": BITS, "image_ids": names}
    write_index_folder(tmp_path / "old", CodeSet(file_names=names, **plain), engine="numpy")
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
    write_index_folder(tmp_path / "set", CodeSet(file_names=relative, **plain), engine="numpy")
    result = search_index(read_index_folder(tmp_path / "set"), Query("q.jpg", ZERO), 4)
    assert (rows(result), result.notes()) == ([1, 3, 5, 6], [])


def test_names_that_are_not_utf8(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    names = [os.fsdecode(os.fsencode(root) + b"/" + name) for name in (b"\xe9.jpg", b"b\n.jpg")]
    for name in names:
        Path(name).write_bytes(os.fsencode(name))
    items = CodeSet(
        codes=np.zeros((2, 1), np.uint8),
        bits=BITS,
        image_ids=names,
        file_names=names,
        roots=[str(root)],
        size=np.array([os.stat(name).st_size for name in names]),
        mtime_ns=np.array([os.stat(name).st_mtime_ns for name in names]),
    )
    write_index_folder(tmp_path / "index", items, engine="numpy")
    folder = read_index_folder(tmp_path / "index")
    result = search_index(folder, Query(names[1], ZERO), 2)
    assert [answer.file_name for answer in result.answers] == names[::-1]
    assert json.loads(json.dumps(result.as_dict()))["answers"][1]["file_name"] == names[0]
    os.unlink(names[0])
    result = search_index(folder, Query(names[1], ZERO), 2)
    assert (len(result.answers), result.gone) == (1, 1)


# --------------------------------------------------------------------------------------------------
# Answers from some folders


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


def test_rows_like_a_query_are_found_by_a_plain_comparison(tmp_path):
    rng = np.random.default_rng(1)
    contents = rng.integers(0, 2, (500, 32), dtype=np.uint8)
    contents[300:] = contents[rng.integers(0, 300, 200)]
    items = CodeSet(
        codes=np.zeros((500, 1), np.uint8),
        bits=BITS,
        image_ids=[""] * 500,
        file_names=[f"{i}.jpg" for i in range(500)],
        content_sha256=contents,
    )
    folder = IndexFolder(tmp_path, {}, items)
    for row in range(0, 500, 7):
        expected = [i for i in range(500) if contents[i].tobytes() == contents[row].tobytes()]
        same_file, same_content = folder.rows_like("q.jpg", contents[row].tobytes())
        assert (same_file.tolist(), same_content.tolist()) == ([], expected)
        same_file, same_content = folder.rows_like(f"{row}.jpg", contents[row].tobytes())
        assert same_file.tolist() == [row]
        assert same_content.tolist() == [i for i in expected if i != row]
    assert [len(found) for found in folder.rows_like("q.jpg", bytes(range(32)))] == [0, 0]


# --------------------------------------------------------------------------------------------------
# The command line


@pytest.fixture(scope="module")
def search(load_tool):
    return load_tool("search").main


@pytest.fixture(scope="module")
def encoded(random_network, tmp_path_factory, load_tool):
    """Codes and index of scenes, to be copied; the scenes stay as they are."""
    folder = tmp_path_factory.mktemp("encoded")
    photos = folder / "photos"
    photos.mkdir()
    scenes = sorted(random_network.scenes.rglob("*.jpg"))[:6]
    for i, scene in enumerate(scenes):
        shutil.copy(scene, photos / f"{i}.jpg")
    start = ["--config-file", random_network.config, "--input", str(photos)]
    output = ["--output", str(folder / "codes.h5")]
    assert load_tool("extract_codes").main([*start, *output, *random_network.opts]) == 0
    build = [str(folder / "codes.h5"), "--output", str(folder / "index"), "--engine", "numpy"]
    assert load_tool("build_index").main(build) == 0
    return folder


@pytest.fixture
def place(encoded, tmp_path):
    """The photos in a folder of their own, with an index for them there."""
    shutil.copytree(encoded / "photos", tmp_path / "photos")
    moves = [f"{encoded / 'photos'}={tmp_path / 'photos'}"]
    items = read_index_folder(encoded / "index", moves=moves).items
    write_index_folder(tmp_path / "index", items, engine="numpy")
    return tmp_path


@pytest.fixture
def run(random_network, place, search, capsys, monkeypatch):
    """A function that searches with some photo, and returns status, names, output and errors."""

    def run(*options, query="2.jpg"):
        capsys.readouterr()
        out = place / "out.json"
        out.unlink(missing_ok=True)
        monkeypatch.chdir(place)
        start = ["--config-file", random_network.config, "--index", str(place / "index")]
        start += ["--query", str(place / "photos" / query), "--json", str(out)]
        status = search([*start, *options, *random_network.opts])
        printed = capsys.readouterr()
        values = json.loads(out.read_text()) if out.exists() else None
        names = values and [os.path.basename(a["file_name"]) for a in values["answers"]]
        return status, names, values, printed

    return run


def test_command_deleted_and_edited_photos(run, place, random_network, tmp_path):
    status, before, values, printed = run("--save", str(place / "grid.png"))
    assert (status, before[0], printed.err) == (0, "2.jpg", "")
    assert (values["gone"], values["changed"], values["away"]) == (0, 0, 0)
    (place / "photos" / before[1]).unlink()
    (place / "photos" / before[2]).write_bytes(b"no image any more")
    status, names, values, printed = run("--topk", "3", "--save", str(place / "grid.png"))
    assert status == 0
    assert names == [before[0], *before[3:5]]
    assert (values["gone"], values["changed"]) == (1, 1)
    (line,) = printed.err.splitlines()
    assert line.startswith("warning: 2 photos have gone or changed since they were encoded")
    status, names, values, printed = run("--no-file-check", "--save", str(place / "grid.png"))
    assert (status, names, printed.err) == (0, before, "")
    with Image.open(place / "grid.png") as image:  # with gray tiles for the two
        colors = {color for _, color in image.getcolors(1 << 24)}
    assert (203, 207, 212) in colors


def test_command_a_renamed_root(run, place):
    (place / "photos").rename(place / "holiday")
    (place / "query").mkdir()
    shutil.copy(place / "holiday" / "2.jpg", place / "query")
    before = {p.name: p.read_bytes() for p in (place / "index").iterdir()}
    status, _, values, printed = run(query=place / "query" / "2.jpg")
    assert (status, values) == (1, None)
    (line,) = printed.err.splitlines()
    assert line.startswith(f"error: {place / 'photos'} is not there")
    status, names, values, printed = run(
        "--root", f"{place / 'photos'}={place / 'holiday'}", query=place / "query" / "2.jpg"
    )
    assert (status, names[0], printed.err) == (0, "2.jpg", "")
    assert {p.name: p.read_bytes() for p in (place / "index").iterdir()} == before


@pytest.mark.parametrize(
    ("options", "query", "message"),
    [
        ((), "typo.jpg", "typo.jpg: No such file"),
        (("--save", "grid.xyz"), "2.jpg", "'.xyz' is no image format"),
        (("--save", "grid.psd"), "2.jpg", "'.psd' is no image format"),
        (("--save", "photos/2.jpg"), "2.jpg", "an output never replaces an input"),
        (("--save", "photos/3.jpg", "--overwrite"), "2.jpg", "photos/3.jpg"),
        (("--root", "nowhere=photos"), "2.jpg", "nowhere"),
    ],
)
def test_command_what_would_fail_at_the_end_is_told_first(
    run, place, monkeypatch, options, query, message
):
    monkeypatch.setattr(searcher, "load_trained_model", None)  # nothing after the checks works
    status, _, _, printed = run(*options, query=query)
    assert status == 1
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_command_the_answers_stand_before_the_picture(run, place, full_disk):
    """A disk that is full at the end costs the picture alone."""
    (place / "photos" / "0.jpg").unlink()
    with full_disk(8192):
        status, names, _, printed = run("--save", str(place / "grid.png"))
    assert (status, len(names)) == (1, 5)
    assert "1.jpg" in printed.out
    assert "grid.png" in printed.err
    assert not (place / "grid.png").exists()
