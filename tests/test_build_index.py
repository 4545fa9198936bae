"""Index folders and the command line that builds them."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regiondh_d2.retrieval import index_folder
from regiondh_d2.retrieval.code_store import read_codes, write_codes
from regiondh_d2.retrieval.hamming_index import IndexFileError, create_index
from regiondh_d2.retrieval.index_folder import read_index_folder, write_index_folder
from regiondh_d2.structures.codes import CodeFileError, CodeSet, InstanceCodes
from regiondh_d2.structures.packed import pack_codes, unpack_codes
from regiondh_d2.utils.errors import RegionDHError
from regiondh_d2.utils.locks import FileInUseError

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools" / "build_index.py"
MODEL = "ab" * 32
FILES = [".lock", ".regiondh", "codes-1.h5", "index.json"]


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("build_index")


def random_codes(rng, rows, bits):
    """Few patterns with few flipped bits, so that many distances are equal."""
    patterns = rng.random((10, bits)) < 0.5
    return pack_codes(patterns[rng.integers(0, 10, rows)] ^ (rng.random((rows, bits)) < 0.02))


def make_items(rows=300, found=900, bits=20, instance_bits=48, **changes):
    rng = np.random.default_rng(bits)
    values = {
        "codes": random_codes(rng, rows, bits),
        "bits": bits,
        "image_ids": [f"{i:06d}" for i in range(rows)],
        "file_names": [f"bilder/größe {i}.jpg" for i in range(rows)],
        "labels": (rng.random((rows, 3)) < 0.5).astype(np.uint8),
        "class_names": ["cat", "dog", "sofa"],
        "dataset": "some_val",
        "model_fingerprint": MODEL,
        "instances": InstanceCodes(
            codes=random_codes(rng, found, instance_bits),
            bits=instance_bits,
            image_index=np.sort(rng.integers(0, rows, found)),
            boxes=rng.random((found, 4)).astype(np.float32),
            scores=rng.random(found).astype(np.float32),
            classes=rng.integers(0, 3, found),
        ),
    }
    return CodeSet(**(values | changes))


@pytest.fixture
def codes_file(tmp_path):
    write_codes(tmp_path / "codes.h5", make_items())
    return tmp_path / "codes.h5"


def sort_pairs(query, codes, bits, k):
    """The oracle: rows of one query by a sort of (distance, row) pairs."""
    distances = np.count_nonzero(unpack_codes(codes, bits) != unpack_codes(query, bits), axis=1)
    return [row for _, row in sorted(zip(distances.tolist(), range(len(codes)), strict=True))[:k]]


@pytest.mark.parametrize("engine", ["faiss", "numpy"])
@pytest.mark.parametrize(("bits", "instance_bits"), [(20, 48), (32, 64), (48, 20), (64, 32)])
def test_both_levels_answer_as_a_sort_does(tmp_path, engine, bits, instance_bits):
    items = make_items(100_000, 100_000, bits, instance_bits)
    written = write_index_folder(tmp_path / "index", items, engine=engine)
    for folder in (
        written,
        read_index_folder(tmp_path / "index"),
        read_index_folder(tmp_path / "index", engine="numpy"),
    ):
        assert list(folder.levels) == ["image", "instance"]
        for level, holder in (("image", items), ("instance", items.instances)):
            queries = holder.codes[[0, 5, 17]]
            _, rows = folder.level(level).search(queries, 120)
            for found, query in zip(rows, queries, strict=True):
                assert found.tolist() == sort_pairs(query[None], holder.codes, holder.bits, 120)


def test_the_folder_keeps_what_answers_need(tool, codes_file, tmp_path, capsys):
    out = tmp_path / "new" / "index"
    assert tool.main([str(codes_file), "--output", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "image: 300 codes of 20 bits\ninstance: 900 codes of 48 bits\n" in printed.out
    assert sorted(os.listdir(out)) == FILES
    assert os.listdir(out.parent) == ["index"]
    assert json.loads((out / "index.json").read_text()) == {
        "format": "regiondh-index",
        "version": 2,
        "engine": "faiss",
        "options": {},
        "bits": 20,
        "roots": [],
        "fingerprint": MODEL,
        "network": "",
        "source": str(codes_file),
        "dataset": "some_val",
        "levels": {
            "image": {"bits": 20, "count": 300},
            "instance": {"bits": 48, "count": 900},
        },
        "files": {"codes": "codes-1.h5"},
    }
    assert (out / "codes-1.h5").read_bytes() == codes_file.read_bytes()  # and no code twice
    items, source = read_index_folder(out).items, read_codes(codes_file)
    assert items.file_names == source.file_names
    assert items.image_ids == source.image_ids
    np.testing.assert_array_equal(items.labels, source.labels)
    for name in ("image_index", "boxes", "scores", "classes"):
        np.testing.assert_array_equal(
            getattr(items.instances, name), getattr(source.instances, name)
        )


@pytest.mark.parametrize(("level", "absent"), [("image", "instance"), ("instance", "image")])
def test_one_level(tool, codes_file, tmp_path, level, absent):
    out = tmp_path / "index"
    arguments = [str(codes_file), "--output", str(out), "--level", level, "--engine", "numpy"]
    assert tool.main(arguments) == 0
    folder = read_index_folder(out)
    assert list(folder.levels) == [level]
    assert folder.record["engine"] == "numpy"
    with pytest.raises(IndexFileError, match=f"build-index --level {absent}"):
        folder.level(absent)


def test_a_file_without_objects(tool, tmp_path, capsys):
    codes, out = str(tmp_path / "codes.h5"), tmp_path / "index"
    write_codes(codes, make_items(instances=None))
    assert tool.main([codes, "--output", str(out)]) == 0
    assert list(read_index_folder(out).levels) == ["image"]
    assert tool.main([codes, "--output", str(tmp_path / "b"), "--level", "instance"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {codes}: has no instance codes")
    assert error.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["codes.h5", "index"]


def test_no_images_and_no_objects_found(tmp_path):
    write_index_folder(tmp_path / "index", make_items(rows=1, found=0))
    folder = read_index_folder(tmp_path / "index")
    assert len(folder.level("instance")) == 0
    write_index_folder(tmp_path / "index", make_items(rows=0, found=0))
    assert len(read_index_folder(tmp_path / "index").level("image")) == 0


def test_approximate_search_prints_its_recall(tool, codes_file, tmp_path, capsys):
    out = tmp_path / "index"
    arguments = [str(codes_file), "--output", str(out), "--nlist", "4", "--nprobe", "4"]
    assert tool.main(arguments) == 0
    assert capsys.readouterr().out.count("recall@100 1.0000 on its own codes") == 2
    folder = read_index_folder(out)
    assert folder.record["options"] == {"nlist": 4, "nprobe": 4}
    assert folder.record["levels"]["image"] == {"bits": 20, "count": 300, "recall@100": 1.0}
    assert not folder.level("image").exact
    assert read_index_folder(out, engine="faiss").level("image").exact
    assert folder.record["files"] == {
        "codes": "codes-1.h5",
        "image": "image-1.npz",
        "instance": "instance-1.npz",
    }
    with np.load(out / "image-1.npz") as lists:
        assert sorted(lists) == ["bits", "centroids"]  # no code twice


@pytest.mark.parametrize("nprobe", [1, 3])
def test_an_approximate_index_answers_as_before_it_was_written(tmp_path, nprobe):
    items = make_items()
    written = write_index_folder(tmp_path / "index", items, nlist=8, nprobe=nprobe)
    read = read_index_folder(tmp_path / "index")
    for level, holder in (("image", items), ("instance", items.instances)):
        for before, after in zip(
            written.level(level).search(holder.codes[:20], 50),
            read.level(level).search(holder.codes[:20], 50),
            strict=True,
        ):
            np.testing.assert_array_equal(before, after)


# --------------------------------------------------------------------------------------------------
# Models


def test_queries_of_another_model_are_refused(tmp_path):
    folder = write_index_folder(tmp_path / "index", make_items())
    assert folder.check_model(MODEL) == []
    with pytest.raises(IndexFileError, match="coded by model abababababab, the query by cdcd"):
        read_index_folder(tmp_path / "index").check_model("cd" * 32)
    (note,) = folder.check_model("")
    assert "the query has no model fingerprint" in note


def test_an_index_without_fingerprint_warns(tool, tmp_path, capsys):
    codes, out = str(tmp_path / "codes.h5"), tmp_path / "index"
    write_codes(codes, make_items(model_fingerprint=""))
    assert tool.main([codes, "--output", str(out)]) == 0
    assert capsys.readouterr().err.startswith(f"warning: {codes} has no model fingerprint")
    (note,) = read_index_folder(out).check_model(MODEL)
    assert "the index has no model fingerprint" in note


# --------------------------------------------------------------------------------------------------
# Complete or absent, and nobody else's files


def test_a_new_index_replaces_the_old_one(tool, codes_file, tmp_path):
    out = tmp_path / "index"
    for level in ([], ["--level", "image"]):
        assert tool.main([str(codes_file), "--output", str(out), *level]) == 0
    assert list(read_index_folder(out).levels) == ["image"]
    assert sorted(os.listdir(tmp_path)) == ["codes.h5", "index"]
    # The folder's own codes are a code file as any other.
    for source in (codes_file, out):
        assert tool.main([str(source), "--output", str(out)]) == 0
        assert list(read_index_folder(out).levels) == ["image", "instance"]
    assert sorted(os.listdir(out)) == [".lock", ".regiondh", "codes-4.h5", "index.json"]


@pytest.mark.parametrize("function", ["write_json", "write_codes"])
@pytest.mark.parametrize("old", [False, True])
def test_an_interrupted_build_leaves_the_old_index_or_none(tmp_path, monkeypatch, function, old):
    out = tmp_path / "index"
    if old:
        write_index_folder(out, make_items(rows=7, found=3))

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(index_folder, function, fail)
    with pytest.raises(KeyboardInterrupt):
        write_index_folder(out, make_items())
    assert os.listdir(tmp_path) == (["index"] if old else [])
    assert not old or len(read_index_folder(out).items) == 7


def test_what_a_killed_build_left_goes(tmp_path):
    """Files of a generation that index.json never named, in a folder with an index or without."""
    out, first = tmp_path / "index", tmp_path / "first"
    write_index_folder(out, make_items(rows=7, found=3))
    shutil.copy(out / "codes-1.h5", out / "codes-5.h5")
    (out / "image-5.npz").write_bytes(b"half")
    shutil.copytree(out, first)
    (first / "index.json").unlink()
    for folder in (out, first):
        write_index_folder(folder, make_items())
        assert sorted(os.listdir(folder)) == [".lock", ".regiondh", "codes-6.h5", "index.json"]
        assert len(read_index_folder(folder).items) == 300


def test_an_open_folder_stays_as_it_was(tmp_path):
    out = tmp_path / "index"
    items = make_items()
    write_index_folder(out, items)
    opened = read_index_folder(out)
    write_index_folder(out, make_items(rows=7, found=3))
    assert len(opened.items) == 300
    assert opened.level("image").search(items.codes[:1], 5)[1].tolist() == [
        sort_pairs(items.codes[:1], items.codes, 20, 5)
    ]


def test_who_opens_a_folder_that_is_replaced_finds_one_generation_whole(tmp_path, monkeypatch):
    """Between reading index.json and the files that it names, a new generation comes."""
    out = tmp_path / "index"
    sizes = iter([7, 8, 9])
    write_index_folder(out, make_items(rows=6, found=3))

    def read(path):
        rows = next(sizes, None)
        if rows is not None:
            monkeypatch.setattr(index_folder, "read_codes", read_codes)
            write_index_folder(out, make_items(rows=rows, found=3))
            monkeypatch.setattr(index_folder, "read_codes", read)
        return read_codes(path)

    monkeypatch.setattr(index_folder, "read_codes", read)
    assert len(read_index_folder(out).items) == 9

    def always_later(path):
        write_index_folder(out, make_items(rows=6, found=3))
        return read_codes(path)

    monkeypatch.setattr(index_folder, "read_codes", always_later)
    with pytest.raises(IndexFileError, match="in use by another program that writes it again"):
        read_index_folder(out)


def test_two_builds_at_once(tool, codes_file, tmp_path, monkeypatch, capsys):
    """The second is told, and harms neither the first nor the index that is there."""
    out = tmp_path / "index"
    write_index_folder(out, make_items(rows=7, found=3))
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    write = index_folder.write_codes
    errors = []

    def build_another(path, items):
        monkeypatch.setattr(index_folder, "write_codes", write)
        assert tool.main([str(codes_file), "--output", str(out)]) == 1
        errors.append(capsys.readouterr().err)
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before
        write(path, items)

    monkeypatch.setattr(index_folder, "write_codes", build_another)
    write_index_folder(out, make_items(rows=8, found=3))
    (error,) = errors
    assert error.startswith(f"error: {out}: in use by another program")
    assert error.count("\n") == 1
    assert len(read_index_folder(out).items) == 8


def test_systems_files_do_not_matter(tool, codes_file, tmp_path):
    out = tmp_path / "index"
    out.mkdir()

    def litter():
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._index.json"):
            (out / name).write_bytes(b"x")
        (out / "@eaDir").mkdir(exist_ok=True)

    for _ in range(2):
        litter()
        assert tool.main([str(codes_file), "--output", str(out)]) == 0
        assert len(read_index_folder(out).items) == 300
    assert (out / "@eaDir").is_dir()


def test_only_an_index_is_replaced(tool, codes_file, tmp_path, capsys):
    photos, mixed, empty = tmp_path / "photos", tmp_path / "mixed", tmp_path / "empty"
    photos.mkdir()
    shutil.copy(codes_file, photos / "items.h5")
    generation, site = tmp_path / "generation", tmp_path / "site"
    generation.mkdir()
    shutil.copy(codes_file, generation / "codes-3.h5")
    site.mkdir()
    (site / "index.json").write_text('{"format": "of a web site"}')
    write_index_folder(mixed, make_items())
    (mixed / "notes.txt").write_text("mine")
    empty.mkdir()
    for folder, message in (
        (photos, "holds files but no index"),
        (generation, "holds files but no index"),
        (site, "index.json that isn't an index's"),
        (mixed, "holds notes.txt beside an index"),
        (codes_file, "is a file; name a folder"),
        (site / "index.json", "is a file; name a folder"),
        (photos / "items.h5" / "index", "items.h5 is no folder"),
    ):
        assert tool.main([str(codes_file), "--output", str(folder)]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert os.listdir(photos) == ["items.h5"]
    assert os.listdir(generation) == ["codes-3.h5"]
    assert os.listdir(site) == ["index.json"]
    assert sorted(os.listdir(mixed)) == sorted([*FILES, "notes.txt"])
    assert tool.main([str(codes_file), "--output", str(empty)]) == 0


# --------------------------------------------------------------------------------------------------
# Folders that are not as written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r | {"format": "other"}, "not of format 'regiondh-index'"),
        (lambda r: r | {"version": 3}, "format version 3, this release reads 1 and 2"),
        (lambda r: r | {"version": True}, "format version True"),
        (lambda r: r | {"version": 1}, "fingerprint is missing or wrong"),
        (lambda r: r | {"files": {}}, "files or levels are wrong"),
        (lambda r: r | {"files": {"codes": "../codes-1.h5"}}, "files or levels are wrong"),
        (lambda r: r | {"files": {"codes": "image-1.npz"}}, "files or levels are wrong"),
        (lambda r: r | {"levels": {"image": 3}}, "files or levels are wrong"),
        (lambda r: r | {"levels": {"image": {"bits": 20}}}, "is of None image codes of 20 bits"),
        (lambda r: [r], "not of format"),
        (lambda r: {k: v for k, v in r.items() if k != "levels"}, "levels is missing or wrong"),
        (lambda r: r | {"levels": {"pixel": {}}}, "levels pixel are not known"),
        (lambda r: r | {"engine": "annoy"}, "engine 'annoy'"),
        (lambda r: r | {"options": {"M": 3}}, "does not take M"),
        (lambda r: r | {"options": {"nlist": "x"}}, "nlist must be a positive integer"),
        (lambda r: r | {"fingerprint": "cd" * 32}, "are of two models"),
    ],
)
def test_a_wrong_record_is_refused(tmp_path, change, message):
    out = tmp_path / "index"
    write_index_folder(out, make_items())
    record = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text(json.dumps(change(record)))
    with pytest.raises(IndexFileError, match=message) as error:
        read_index_folder(out)
    assert str(out) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_of_different_indexes_are_refused(tmp_path):
    out, other = tmp_path / "index", tmp_path / "other"
    write_index_folder(out, make_items())
    write_index_folder(other, make_items(rows=299))
    shutil.copy(other / "codes-1.h5", out)
    with pytest.raises(IndexFileError, match="is of 300 image codes of 20 bits and codes-1.h5 of"):
        read_index_folder(out)
    write_index_folder(other, replace(make_items(), instances=None))
    shutil.copy(other / "codes-2.h5", out / "codes-1.h5")
    with pytest.raises(IndexFileError, match="codes-1.h5 has no instance codes"):
        read_index_folder(out)
    write_index_folder(out, make_items(), nlist=4)
    write_index_folder(other, make_items(bits=24), nlist=4)
    shutil.copy(other / "image-3.npz", out / "image-2.npz")
    with pytest.raises(IndexFileError, match="is of codes of 24 bits, this index 20"):
        read_index_folder(out)
    write_index_folder(other, make_items(), nlist=5)
    shutil.copy(other / "image-4.npz", out / "image-2.npz")
    with pytest.raises(IndexFileError, match="image-2.npz: holds no lists of this index"):
        read_index_folder(out)


def test_missing_and_damaged_files(tmp_path):
    out = tmp_path / "index"
    with pytest.raises(IndexFileError, match="no index folder; build one with"):
        read_index_folder(out)
    write_index_folder(out, make_items(), nlist=4)
    (out / "image-1.npz").write_bytes((out / "image-1.npz").read_bytes()[:60])
    with pytest.raises(IndexFileError, match=r"image-1.npz: not a readable index file, damaged"):
        read_index_folder(out)
    (out / "image-1.npz").unlink()
    with pytest.raises(IndexFileError, match=r"image-1.npz: no such file"):
        read_index_folder(out)
    (out / "codes-1.h5").write_bytes(b"x")
    with pytest.raises(CodeFileError, match=r"codes-1.h5: not a readable"):
        read_index_folder(out)
    (out / "codes-1.h5").unlink()
    with pytest.raises(CodeFileError, match=r"codes-1.h5: no such file"):
        read_index_folder(out)
    for damaged in (b"{\xff", b"", b"[" * 100_000):
        (out / "index.json").write_bytes(damaged)
        with pytest.raises(IndexFileError, match=r"index.json: not readable"):
            read_index_folder(out)
    write_index_folder(out, make_items())  # and can be built again
    assert len(read_index_folder(out).items) == 300


def test_files_in_use_by_another_program(tmp_path, monkeypatch):
    out = tmp_path / "index"
    write_index_folder(out, make_items(), nlist=4)
    real_open, real_load = Path.read_text, np.load

    def busy(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(Path, "read_text", busy)
    with pytest.raises(FileInUseError, match=r"index.json: in use by another program"):
        read_index_folder(out)
    monkeypatch.setattr(Path, "read_text", real_open)
    monkeypatch.setattr(np, "load", busy)
    with pytest.raises(FileInUseError, match=r"image-1.npz: in use by another program"):
        read_index_folder(out)
    monkeypatch.setattr(np, "load", real_load)
    assert len(read_index_folder(out).items) == 300


# --------------------------------------------------------------------------------------------------
# Version 1


def write_version_1(path, items, **options):
    """As version 0.1 did, which held the codes twice."""
    path.mkdir()
    write_codes(path / "items.h5", items)
    levels = {}
    for level, holder in (("image", items), ("instance", items.instances)):
        index = create_index(holder.bits, "faiss", **options)
        index.add(holder.codes)
        index.save(path / f"{level}.npz")
        levels[level] = {"bits": holder.bits, "count": len(index)}
    record = {
        "format": "regiondh-index",
        "version": 1,
        "engine": "faiss",
        "options": options,
        "source": "codes.h5",
        "dataset": "some_val",
        "model_fingerprint": MODEL,
        "levels": levels,
    }
    (path / "index.json").write_text(json.dumps(record))


@pytest.mark.parametrize("options", [{}, {"nlist": 4, "nprobe": 4}])
def test_version_1_opens_and_becomes_version_2(tmp_path, options):
    out, items = tmp_path / "index", make_items()
    write_version_1(out, items, **options)
    for _ in range(2):
        folder = read_index_folder(out)
        assert (folder.record["fingerprint"], folder.record["bits"]) == (MODEL, 20)
        assert folder.record["version"] == 2
        assert folder.check_model(MODEL) == []
        for level, holder in (("image", items), ("instance", items.instances)):
            _, rows = folder.level(level).search(holder.codes[:1], len(holder.codes))
            assert rows[0].tolist() == sort_pairs(
                holder.codes[:1], holder.codes, holder.bits, len(holder.codes)
            )
        write_index_folder(out, folder.items)
    assert sorted(os.listdir(out)) == [".lock", ".regiondh", "codes-2.h5", "index.json"]


def test_rows_removed_from_version_1_stay_removed(tmp_path):
    out, items = tmp_path / "index", make_items()
    write_version_1(out, items)
    index = create_index(20)
    index.load(out / "image.npz")
    index.remove(np.arange(0, 300, 2))
    index.save(out / "image.npz")
    _, rows = read_index_folder(out).level("image").search(items.codes[:1], 300)
    expected = sort_pairs(items.codes[:1], items.codes, 20, 300)
    assert rows[0].tolist() == [row for row in expected if row % 2]


def test_a_failed_build_keeps_version_1(tmp_path, monkeypatch):
    out = tmp_path / "index"
    write_version_1(out, make_items(rows=7, found=3))
    monkeypatch.setattr(index_folder, "write_json", None)
    with pytest.raises(TypeError):
        write_index_folder(out, make_items())
    assert len(read_index_folder(out).items) == 7


@pytest.mark.parametrize("name", ["image.npz", "items.h5"])
def test_damage_of_version_1(tmp_path, name):
    out, other = tmp_path / "index", tmp_path / "other"
    write_version_1(out, make_items())
    write_version_1(other, make_items(rows=299))
    shutil.copy(other / "image.npz", out)
    with pytest.raises(IndexFileError, match="image.npz is of 299 codes and items.h5 of 300"):
        read_index_folder(out)
    (out / name).write_bytes(b"x")
    with pytest.raises(RegionDHError, match=rf"{name}: not a readable"):
        read_index_folder(out)


# --------------------------------------------------------------------------------------------------
# Photos that have gone or stand elsewhere


@pytest.fixture
def photos(tmp_path):
    """A code file of nine photos in three folders below a root, with two objects each."""
    root = tmp_path / "photos"
    names = [root / f"{folder}" / f"{i}.jpg" for folder in "abc" for i in range(3)]
    for name in names:
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(os.fsencode(name.name))
    stats = [name.stat() for name in names]
    instances = make_items(rows=9, found=18).instances
    items = make_items(
        rows=9,
        found=18,
        image_ids=[str(name) for name in names],
        file_names=[str(name) for name in names],
        roots=[str(root)],
        size=np.array([s.st_size for s in stats]),
        mtime_ns=np.array([s.st_mtime_ns for s in stats]),
        instances=replace(instances, image_index=np.repeat(np.arange(9), 2)),
    )
    write_codes(tmp_path / "codes.h5", items)
    return root


def names_of(folder, root):
    return [os.path.relpath(name, root) for name in read_index_folder(folder).items.file_names]


def test_rows_of_photos_that_have_gone_are_pruned_and_no_others(tool, photos, tmp_path, capsys):
    out, codes = tmp_path / "index", str(tmp_path / "codes.h5")
    (photos / "a" / "0.jpg").unlink()
    (photos / "b" / "1.jpg").write_bytes(b"changed meanwhile")
    shutil.rmtree(photos / "c")
    assert tool.main([codes, "--output", str(out)]) == 0
    assert len(names_of(out, photos)) == 9  # only --prune removes
    expected = [f"{folder}/{i}.jpg" for folder in "ab" for i in range(3)][1:]
    before = Path(codes).read_bytes()
    for source in (codes, str(out)):
        capsys.readouterr()
        assert tool.main([source, "--output", str(out), "--prune"]) == 0
        assert names_of(out, photos) == expected
        found = read_index_folder(out).items.instances
        assert found.image_index.tolist() == np.repeat(np.arange(5), 2).tolist()
        if source == codes:
            line = f"pruned: 4 photos that have gone, first {photos / 'a' / '0.jpg'}\n"
            assert line in capsys.readouterr().out
    assert Path(codes).read_bytes() == before


@pytest.mark.parametrize("how", ["missing", "empty", "file"])
def test_nothing_is_pruned_while_the_root_is_away(tool, photos, tmp_path, capsys, how):
    out, codes = tmp_path / "index", str(tmp_path / "codes.h5")
    assert tool.main([codes, "--output", str(out)]) == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    photos.rename(tmp_path / "elsewhere")
    if how == "empty":
        photos.mkdir()
    elif how == "file":
        photos.write_bytes(b"")
    capsys.readouterr()
    assert tool.main([codes, "--output", str(out), "--prune"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"error: {photos} is ")
    assert "9 photos below it stay; there is nothing to prune" in error
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_all_photos_gone_is_not_pruned_to_nothing(tool, photos, tmp_path, capsys):
    for name in photos.rglob("*.jpg"):
        name.unlink()
    arguments = [str(tmp_path / "codes.h5"), "--output", str(tmp_path / "index"), "--prune"]
    assert tool.main(arguments) == 1
    assert "all 9 photos have gone; nothing would be left" in capsys.readouterr().err


def test_an_index_moves_with_its_photos(tool, photos, tmp_path, capsys):
    out, codes = tmp_path / "index", str(tmp_path / "codes.h5")
    assert tool.main([codes, "--output", str(out)]) == 0
    new = tmp_path / "a=b disk"
    photos.rename(new)
    assert len(read_index_folder(out, moves=[f"{photos}={new}"]).items) == 9
    for source in (codes, str(out)):
        assert tool.main([source, "--output", str(out), "--root", f"{photos}/={new}"]) == 0
        assert names_of(out, new)[0] == "a/0.jpg"
        assert read_index_folder(out).record["roots"] == [str(new)]
        assert tool.main([codes, "--output", str(out)]) == 0
    for wrong, message in (
        ("nonsense", "nonsense: is not OLD=NEW"),
        (f"{photos}=", "is not OLD=NEW"),
        (f"{photos}={tmp_path}/nowhere", "there is no folder"),
        (f"{tmp_path}/other={new}", f"{tmp_path}/other"),
    ):
        capsys.readouterr()
        assert tool.main([codes, "--output", str(out), "--root", wrong]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


# --------------------------------------------------------------------------------------------------
# The command line


@pytest.mark.parametrize(
    "arguments",
    [
        ["codes.h5"],
        ["--output", "index"],
        ["codes.h5", "--output", "index", "--level", "pixel"],
        ["codes.h5", "--output", "index", "--engine", "annoy"],
        ["codes.h5", "--output", "index", "--nlist", "0"],
        ["codes.h5", "--output", "index", "--nprobe", "4"],
        ["codes.h5", "--output", "index", "--nlist", "4", "--engine", "numpy"],
    ],
)
def test_wrong_arguments_exit_2(tool, arguments):
    with pytest.raises(SystemExit) as error:
        tool.main(arguments)
    assert error.value.code == 2


@pytest.mark.parametrize("options", [["--nlist", "400"], ["--nlist", "4", "--nprobe", "5"]])
def test_options_that_do_not_fit_exit_1(tool, codes_file, tmp_path, capsys, options):
    out = tmp_path / "index"
    assert tool.main([str(codes_file), "--output", str(out), *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: n")
    assert error.count("\n") == 1
    assert not out.exists()


def test_without_faiss(tool, codes_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    out = tmp_path / "index"
    for options in (["--engine", "faiss"], ["--nlist", "4"]):
        assert tool.main([str(codes_file), "--output", str(out), *options]) == 1
        assert "pip install faiss-cpu" in capsys.readouterr().err
        assert not out.exists()
    assert tool.main([str(codes_file), "--output", str(out)]) == 0
    assert f"{out}: numpy, built in" in capsys.readouterr().out
    assert len(read_index_folder(out).level("image")) == 300


def test_as_a_program(tmp_path):
    """A missing file: exit status 1 and one line that names it."""
    absent = str(tmp_path / "absent.h5")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPT, absent, "--output", tmp_path / "index"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 1
    assert absent in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []
