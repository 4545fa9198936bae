"""Index folders: what they keep, complete or absent, and what is not as written."""

import json
import os
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from indexing import MODEL, make_items, sort_pairs
from regiondh_d2.retrieval import index_folder, index_record
from regiondh_d2.retrieval.code_store import read_codes, write_codes
from regiondh_d2.retrieval.engines import create_index
from regiondh_d2.retrieval.index_file import IndexFileError
from regiondh_d2.retrieval.index_folder import read_index_folder, write_index_folder
from regiondh_d2.structures.codes import CodeFileError
from regiondh_d2.utils.errors import RegionDHError
from regiondh_d2.utils.locks import FileInUseError


@pytest.mark.parametrize("engine", ["faiss", "numpy", "shards"])
@pytest.mark.parametrize(("bits", "instance_bits"), [(20, 48), (32, 64), (48, 20), (64, 32)])
def test_both_indexes_answer_as_a_sort_does(tmp_path, engine, bits, instance_bits):
    items = make_items(20_000, 20_000, bits, instance_bits)
    folders = (
        write_index_folder(tmp_path / "index", items, engine=engine),
        read_index_folder(tmp_path / "index"),
        read_index_folder(tmp_path / "index", engine="numpy"),
    )
    for granularity, holder in (("image", items), ("instance", items.instances)):
        queries = holder.codes[[0, 5, 17]]
        expected = [sort_pairs(query[None], holder.codes, holder.bits, 120) for query in queries]
        for folder in folders:
            assert list(folder.indexes) == ["image", "instance"]
            _, rows = folder.index(granularity).search(queries, 120)
            assert rows.tolist() == expected


def test_no_images_and_no_objects_found(tmp_path):
    write_index_folder(tmp_path / "index", make_items(rows=1, found=0))
    folder = read_index_folder(tmp_path / "index")
    assert len(folder.index("instance")) == 0
    write_index_folder(tmp_path / "index", make_items(rows=0, found=0))
    assert len(read_index_folder(tmp_path / "index").index("image")) == 0


@pytest.mark.parametrize("nprobe", [1, 3])
def test_an_approximate_index_answers_as_before_it_was_written(tmp_path, nprobe):
    items = make_items()
    written = write_index_folder(tmp_path / "index", items, nlist=8, nprobe=nprobe)
    read = read_index_folder(tmp_path / "index")
    for granularity, holder in (("image", items), ("instance", items.instances)):
        for before, after in zip(
            written.index(granularity).search(holder.codes[:20], 50),
            read.index(granularity).search(holder.codes[:20], 50),
            strict=True,
        ):
            np.testing.assert_array_equal(before, after)


def test_queries_of_another_model_are_refused(tmp_path):
    folder = write_index_folder(tmp_path / "index", make_items())
    assert folder.check_model(MODEL) == []
    with pytest.raises(IndexFileError, match="encoded by model abababababab, the query by cdcd"):
        read_index_folder(tmp_path / "index").check_model("cd" * 32)
    (note,) = folder.check_model("")
    assert "the query has no model fingerprint" in note


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


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), IndexFileError("damaged")])
def test_no_file_goes_while_it_is_not_known_which_are_used(tmp_path, monkeypatch, failing, error):
    """Where index.json can't be read, its own files looked like those of a killed build."""
    out = tmp_path / "index"
    write_index_folder(out, make_items(rows=7, found=3))
    write_json = index_folder.write_json

    def write(*args):
        write_json(*args)
        if failing:
            raise KeyboardInterrupt

    def fail(path):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(index_folder, "write_json", write)
        patch.setattr(index_record, "read_record", fail)
        with pytest.raises(KeyboardInterrupt) if failing else nullcontext():
            write_index_folder(out, make_items())
    assert len(read_index_folder(out).items) == 300
    write_index_folder(out, make_items(rows=7, found=3))
    assert sorted(os.listdir(out)) == [".lock", ".regiondh", "codes-3.h5", "index.json"]


def test_an_open_folder_stays_as_it_was(tmp_path):
    out = tmp_path / "index"
    items = make_items()
    write_index_folder(out, items)
    opened = read_index_folder(out)
    write_index_folder(out, make_items(rows=7, found=3))
    assert len(opened.items) == 300
    assert opened.index("image").search(items.codes[:1], 5)[1].tolist() == [
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
    for granularity, holder in (("image", items), ("instance", items.instances)):
        index = create_index(holder.bits, "faiss", **options)
        index.add(holder.codes)
        index.save(path / f"{granularity}.npz")
        levels[granularity] = {"bits": holder.bits, "count": len(index)}
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
        for granularity, holder in (("image", items), ("instance", items.instances)):
            _, rows = folder.index(granularity).search(holder.codes[:1], len(holder.codes))
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
    _, rows = read_index_folder(out).index("image").search(items.codes[:1], 300)
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
