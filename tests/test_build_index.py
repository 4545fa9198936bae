"""The command that builds index folders."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from indexing import MODEL, make_items
from programs import run_program
from regiondh_d2.retrieval import index_folder
from regiondh_d2.retrieval.code_store import read_codes, write_codes
from regiondh_d2.retrieval.index_file import IndexFileError
from regiondh_d2.retrieval.index_folder import read_index_folder, write_index_folder

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools" / "build_index.py"
FILES = [".lock", ".regiondh", "codes-1.h5", "index.json"]


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("build_index")


@pytest.fixture
def codes_file(tmp_path):
    write_codes(tmp_path / "codes.h5", make_items())
    return tmp_path / "codes.h5"


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
    assert list(folder.indexes) == [level]
    assert folder.record["engine"] == "numpy"
    with pytest.raises(IndexFileError, match=f"build-index --level {absent}"):
        folder.index(absent)


def test_a_file_without_objects(tool, tmp_path, capsys):
    codes, out = str(tmp_path / "codes.h5"), tmp_path / "index"
    write_codes(codes, make_items(instances=None))
    assert tool.main([codes, "--output", str(out)]) == 0
    assert list(read_index_folder(out).indexes) == ["image"]
    assert tool.main([codes, "--output", str(tmp_path / "b"), "--level", "instance"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {codes}: has no instance codes")
    assert error.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["codes.h5", "index"]


def test_approximate_search_prints_its_recall(tool, codes_file, tmp_path, capsys):
    out = tmp_path / "index"
    arguments = [str(codes_file), "--output", str(out), "--nlist", "4", "--nprobe", "4"]
    assert tool.main(arguments) == 0
    assert capsys.readouterr().out.count("recall@100 1.0000 on its own codes") == 2
    folder = read_index_folder(out)
    assert folder.record["options"] == {"nlist": 4, "nprobe": 4}
    assert folder.record["levels"]["image"] == {"bits": 20, "count": 300, "recall@100": 1.0}
    assert not folder.index("image").exact
    assert read_index_folder(out, engine="faiss").index("image").exact
    assert folder.record["files"] == {
        "codes": "codes-1.h5",
        "image": "image-1.npz",
        "instance": "instance-1.npz",
    }
    with np.load(out / "image-1.npz") as lists:
        assert sorted(lists) == ["bits", "centroids"]  # no code twice


def test_an_index_without_fingerprint_warns(tool, tmp_path, capsys):
    codes, out = str(tmp_path / "codes.h5"), tmp_path / "index"
    write_codes(codes, make_items(model_fingerprint=""))
    assert tool.main([codes, "--output", str(out)]) == 0
    assert capsys.readouterr().err.startswith(f"warning: {codes} has no model fingerprint")
    (note,) = read_index_folder(out).check_model(MODEL)
    assert "the index has no model fingerprint" in note


def test_a_new_index_replaces_the_old_one(tool, codes_file, tmp_path):
    out = tmp_path / "index"
    for level in ([], ["--level", "image"]):
        assert tool.main([str(codes_file), "--output", str(out), *level]) == 0
    assert list(read_index_folder(out).indexes) == ["image"]
    assert sorted(os.listdir(tmp_path)) == ["codes.h5", "index"]
    # The folder's own codes are a code file as any other.
    for source in (codes_file, out):
        assert tool.main([str(source), "--output", str(out)]) == 0
        assert list(read_index_folder(out).indexes) == ["image", "instance"]
    assert sorted(os.listdir(out)) == [".lock", ".regiondh", "codes-4.h5", "index.json"]


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
    assert len(read_index_folder(out).index("image")) == 300


def test_as_a_program(tmp_path):
    """A missing file: exit status 1 and one line that names it."""
    absent = str(tmp_path / "absent.h5")
    done = run_program([SCRIPT, absent, "--output", tmp_path / "index"], cwd=tmp_path)
    assert done.returncode == 1
    assert absent in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "milvus"], "--engine milvus needs --uri, the server"),
        (["--uri", "http://a"], "--uri needs --engine milvus"),
        (["--engine", "numpy", "--collection", "a"], "--collection needs --engine milvus"),
        (["--engine", "milvus", "--uri", "u", "--collection", "a-b"], "letters, digits and _"),
        (["--engine", "numpy", "--nlist", "4"], "--nlist needs --engine faiss or milvus"),
        (["--engine", "shards", "--nlist", "4"], "--nlist needs --engine faiss or milvus"),
        (["--engine", "numpy", "--shard-rows", "4"], "--shard-rows needs --engine shards"),
    ],
)
def test_options_of_engines(tool, codes_file, capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        tool.main([str(codes_file), "--output", "index", *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
