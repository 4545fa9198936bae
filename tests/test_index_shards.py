"""Index folders of the engine "shards": which files a change writes, and files that are wrong."""

import json
import os

import numpy as np
import pytest

from indexing import make_items, sort_pairs
from regiondh_d2.retrieval.code_store import write_codes
from regiondh_d2.retrieval.engines import ShardArrays
from regiondh_d2.retrieval.index_file import IndexFileError
from regiondh_d2.retrieval.index_folder import read_index_folder, write_index_folder
from regiondh_d2.retrieval.queries import Query, QueryObject, SearchOptions
from regiondh_d2.retrieval.service import SearchService, SnapshotHolder
from regiondh_d2.structures.code_rows import take_rows
from regiondh_d2.utils.errors import RegionDHError


@pytest.fixture
def out(tmp_path):
    return tmp_path / "index"


def build(out, items, shard_rows=100):
    return write_index_folder(out, items, engine="shards", shard_rows=shard_rows)


def shards_of(out, granularity="image"):
    """Name and time of writing of each file, in order."""
    record = json.loads((out / "index.json").read_text())
    names = [shard["file"] for shard in record["levels"][granularity]["shards"]]
    return {name: (out / name).stat().st_mtime_ns for name in names}


def first_rows(items, count):
    return take_rows(items, range(count))


def assert_answers(folder, items):
    query = items.codes[:1]
    _, (rows,) = folder.index("image").search(query, 50)
    assert rows.tolist() == sort_pairs(query, items.codes, items.bits, 50)


def test_a_folder_that_grows_keeps_its_files(out):
    items = make_items(rows=500, found=40)
    build(out, first_rows(items, 250))
    before = shards_of(out)
    assert list(before) == ["image-1-1.npy", "image-1-2.npy", "image-1-3.npy"]
    reader = read_index_folder(out)
    folder = build(out, first_rows(items, 270))
    assert before.items() < shards_of(out).items()
    assert list(shards_of(out))[3:] == ["image-2-1.npy"]
    assert_answers(folder, first_rows(items, 270))
    # Small ones are joined: 50, 20 and 80 codes.
    folder = build(out, first_rows(items, 350))
    assert list(shards_of(out)) == [*list(before)[:2], "image-3-1.npy", "image-3-2.npy"]
    assert_answers(folder, first_rows(items, 350))
    assert_answers(read_index_folder(out), first_rows(items, 350))
    assert_answers(reader, first_rows(items, 250))
    named = {*shards_of(out), *shards_of(out, "instance")}
    assert set(os.listdir(out)) == {*named, "codes-3.h5", "index.json", ".lock", ".regiondh"}


def test_removed_images_stay_removed(out):
    items = make_items(rows=350, found=40)
    build(out, items)
    before = shards_of(out)
    left = take_rows(items, [i for i in range(350) if i not in (150, 151)])
    assert_answers(build(out, left), left)
    assert_answers(read_index_folder(out), left)
    # Only the codes before the first removed one are where they were.
    assert list(shards_of(out)) == ["image-1-1.npy", *(f"image-2-{i}.npy" for i in (1, 2, 3))]
    assert shards_of(out)["image-1-1.npy"] == before["image-1-1.npy"]


def test_other_codes_or_sizes_are_written_again(out):
    items = make_items(rows=250, found=0)
    build(out, items)
    build(out, items, shard_rows=50)
    assert all(name.startswith("image-2-") for name in shards_of(out))
    build(out, make_items(rows=250, found=0, bits=24))
    assert all(name.startswith("image-3-") for name in shards_of(out))
    write_index_folder(out, items, engine="numpy")
    assert not list(out.glob("*.npy"))


def test_no_codes(out):
    folder = build(out, make_items(rows=0, found=0))
    assert len(folder.index("image")) == len(read_index_folder(out).index("instance")) == 0


def test_the_command_and_the_service(out, tmp_path, load_tool, capsys):
    items = make_items(rows=120, found=300)
    write_codes(tmp_path / "codes.h5", items)
    words = [str(tmp_path / "codes.h5"), "--output", str(out), "--engine", "shards"]
    assert load_tool("build_index").main([*words, "--shard-rows", "50"]) == 0
    assert "index: shards, built in" in capsys.readouterr().out
    assert [len(shards_of(out, level)) for level in ("image", "instance")] == [3, 6]
    here = write_index_folder(tmp_path / "numpy", items, engine="numpy")
    services = [SearchService.open(out), SearchService(here)]
    assert isinstance(services[0].folder.index("instance"), ShardArrays)
    one = Query("q.jpg", items.instances.codes[5:6], (QueryObject((0.0, 0.0, 9.0, 9.0)),))
    for query in (Query("q.jpg", items.codes[:1]), one):
        for options in (SearchOptions(topk=15), SearchOptions(topk=7, class_name="dog")):
            answers = [service.search(query, options).answers for service in services]
            assert answers[0] == answers[1] != ()
    # Rebuilt from itself, and opened by the page's holder meanwhile.
    holder = SnapshotHolder(out)
    assert load_tool("build_index").main([str(out), *words[1:]]) == 0
    assert holder.current().search(one).answers == services[1].search(one).answers
    assert read_index_folder(out, engine="numpy").record["engine"] == "shards"


def test_options_of_the_folder(out):
    with pytest.raises(RegionDHError, match="does not take threads: its option is shard_rows"):
        write_index_folder(out, make_items(), engine="shards", threads=2)
    assert not out.exists()


def damage(path):
    values = np.load(path)
    values[3, 0] ^= 1
    np.save(path, values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (os.remove, r"image-1-2\.npy: missing or damaged"),
        (lambda path: os.truncate(path, 200), r"image-1-2\.npy: missing or damaged"),
        (lambda path: path.write_bytes(b""), r"image-1-2\.npy: missing or damaged"),
        (damage, r"image-1-2\.npy: has other codes than the code file"),
        (lambda path: np.save(path, np.zeros((9, 4), np.uint8)), r"image-1-2\.npy: holds uint8"),
    ],
)
def test_a_shard_that_is_missing_or_damaged(out, change, message):
    items = make_items(rows=250, found=0)
    build(out, items)
    change(out / "image-1-2.npy")
    with pytest.raises(IndexFileError, match=message) as error:
        read_index_folder(out)
    assert "\n" not in str(error.value)
    build(out, items)  # what the message says
    assert_answers(read_index_folder(out), items)
    assert list(shards_of(out)) == ["image-1-1.npy", "image-2-1.npy", "image-2-2.npy"]


def test_a_record_of_version_1_names_no_other_folder(out, tmp_path):
    """Or its index, loaded into the files of that folder, would replace them."""
    build(out, make_items(rows=250, found=0))
    record = json.loads((out / "index.json").read_text())
    record |= {"version": 1, "model_fingerprint": "", "options": {"path": str(tmp_path / "other")}}
    (out / "index.json").write_text(json.dumps(record))
    with pytest.raises(IndexFileError, match="engine 'shards' or levels"):
        read_index_folder(out)


@pytest.mark.parametrize(
    "shards",
    [
        None,
        "image-1-1.npy",
        [{"file": "image-1-1.npy"}],
        [{"file": "../image-1-1.npy", "count": 100}],
        [{"file": "instance-1-1.npy", "count": 100}],
        [{"file": "image-1-1.npy", "count": -100}],
        [{"file": "image-1-1.npy", "count": 100}],
    ],
)
def test_a_wrong_record(out, shards):
    items = make_items(rows=250, found=0)
    build(out, items)
    record = json.loads((out / "index.json").read_text())
    record["levels"]["image"]["shards"] = shards
    (out / "index.json").write_text(json.dumps(record))
    with pytest.raises(IndexFileError, match="shards are wrong|shards have 100 codes and its code"):
        read_index_folder(out)
    build(out, items)
    assert_answers(read_index_folder(out), items)
