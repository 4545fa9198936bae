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
from regiondh_d2.retrieval.hamming_index import IndexFileError
from regiondh_d2.retrieval.index_folder import read_index_folder, write_index_folder
from regiondh_d2.structures.codes import CodeFileError, CodeSet, InstanceCodes
from regiondh_d2.structures.packed import pack_codes, unpack_codes

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools" / "build_index.py"
MODEL = "ab" * 32
FILES = ["image.npz", "index.json", "instance.npz", "items.h5"]


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
        "version": 1,
        "engine": "faiss",
        "options": {},
        "source": str(codes_file),
        "dataset": "some_val",
        "model_fingerprint": MODEL,
        "levels": {
            "image": {"bits": 20, "count": 300},
            "instance": {"bits": 48, "count": 900},
        },
    }
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
    assert f"{absent}.npz" not in os.listdir(out)
    with pytest.raises(IndexFileError, match=f"build_index.py --level {absent}"):
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


def test_removed_rows_keep_their_items(tmp_path):
    """Rows go on pointing to the right items after a removal is saved into the folder."""
    items = make_items()
    index = write_index_folder(tmp_path / "index", items).level("image")
    index.remove(np.arange(0, 300, 2))
    index.save(tmp_path / "index" / "image.npz")
    folder = read_index_folder(tmp_path / "index")
    distances, rows = folder.level("image").search(items.codes[:1], 300)
    expected = sort_pairs(items.codes[:1], items.codes, 20, 300)
    assert rows[0].tolist() == [row for row in expected if row % 2]


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
    # The folder's own items are a code file as any other.
    assert tool.main([str(out / "items.h5"), "--output", str(out)]) == 0
    assert list(read_index_folder(out).levels) == ["image", "instance"]


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


def test_a_failed_rename_puts_the_old_index_back(tmp_path, monkeypatch):
    out = tmp_path / "index"
    write_index_folder(out, make_items(rows=7, found=3))
    rename = Path.rename

    def fail_for_the_new_one(self, target):
        if self.suffix == ".tmp":
            raise OSError("no space left")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(OSError, match="no space left"):
        write_index_folder(out, make_items())
    assert os.listdir(tmp_path) == ["index"]
    assert len(read_index_folder(out).items) == 7


def test_only_an_index_is_replaced(tool, codes_file, tmp_path, capsys):
    photos, mixed, empty = tmp_path / "photos", tmp_path / "mixed", tmp_path / "empty"
    photos.mkdir()
    shutil.copy(codes_file, photos / "items.h5")
    write_index_folder(mixed, make_items())
    (mixed / "notes.txt").write_text("mine")
    empty.mkdir()
    for folder, message in (
        (photos, "holds files but no index"),
        (mixed, "holds notes.txt beside an index"),
        (codes_file, "is a file"),
        (photos / "items.h5" / "index", "Not a directory"),
    ):
        assert tool.main([str(codes_file), "--output", str(folder)]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert os.listdir(photos) == ["items.h5"]
    assert sorted(os.listdir(mixed)) == sorted([*FILES, "notes.txt"])
    assert tool.main([str(codes_file), "--output", str(empty)]) == 0


# --------------------------------------------------------------------------------------------------
# Folders that are not as written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r | {"format": "other"}, "not of format 'regiondh-index'"),
        (lambda r: r | {"version": 2}, "format version 2, this release reads 1"),
        (lambda r: [r], "not of format"),
        (lambda r: {k: v for k, v in r.items() if k != "levels"}, "levels is missing or wrong"),
        (lambda r: r | {"levels": {"pixel": {}}}, "levels pixel are not known"),
        (lambda r: r | {"engine": "annoy"}, "engine 'annoy'"),
        (lambda r: r | {"options": {"M": 3}}, "does not take M"),
        (lambda r: r | {"options": {"nlist": "x"}}, "nlist must be a positive integer"),
        (lambda r: r | {"model_fingerprint": "cd" * 32}, "are of two models"),
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
    shutil.copy(other / "image.npz", out)
    with pytest.raises(IndexFileError, match="image.npz is of 299 codes and items.h5 of 300"):
        read_index_folder(out)
    write_index_folder(other, make_items(bits=24))
    shutil.copy(other / "image.npz", out)
    with pytest.raises(IndexFileError, match="holds codes of 24 bits, this index 20"):
        read_index_folder(out)
    write_index_folder(other, replace(make_items(), instances=None))
    shutil.copy(other / "items.h5", out)
    shutil.copy(other / "image.npz", out)
    with pytest.raises(IndexFileError, match="items.h5 has no instance codes"):
        read_index_folder(out)


def test_missing_and_damaged_files(tmp_path):
    out = tmp_path / "index"
    with pytest.raises(IndexFileError, match="no index folder; build one with"):
        read_index_folder(out)
    write_index_folder(out, make_items())
    (out / "image.npz").unlink()
    with pytest.raises(IndexFileError, match=r"image.npz: no such file"):
        read_index_folder(out)
    (out / "items.h5").write_bytes(b"x")
    with pytest.raises(CodeFileError, match=r"items.h5: not a readable"):
        read_index_folder(out)
    (out / "index.json").write_bytes(b"{\xff")
    with pytest.raises(IndexFileError, match=r"index.json: not readable"):
        read_index_folder(out)


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
    assert tool.main([str(codes_file), "--output", str(out)]) == 1
    assert "pip install faiss-cpu" in capsys.readouterr().err
    assert not out.exists()
    assert tool.main([str(codes_file), "--output", str(out), "--engine", "numpy"]) == 0
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
