"""The engine with files: its folder, and answers that are bit-identical to one index."""

import json
import multiprocessing
import os
import signal

import numpy as np
import pytest

from index_oracle import assert_answers, make_codes, sort_pairs
from regiondh_d2.retrieval.engines import ShardArrays, create_index, shard_search, write_array
from regiondh_d2.retrieval.index_file import IndexFileError
from regiondh_d2.utils.errors import MissingPackageError
from regiondh_d2.utils.locks import FileInUseError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "index"


def open_index(folder, bits=48, **options):
    return create_index(bits, "shards", path=folder, **{"shard_rows": 1000, **options})


@pytest.fixture(params=["faiss", "numpy"])
def kernel(request, monkeypatch):
    """With FAISS, and as if it weren't installed."""
    if request.param == "numpy":

        def fail():
            raise MissingPackageError

        monkeypatch.setattr(shard_search, "import_faiss", fail)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("count", [1, 2, 20])
@pytest.mark.parametrize("threads", [1, 3])
def test_small_blocks_and_threads_that_share_a_query(threads, count, monkeypatch):
    """Blocks that end within shards, and removed rows in some of them; a sort is the oracle."""
    for name, size in (("_FIRST_BLOCK", 8), ("_LARGEST_BLOCK", 100), ("_FEWEST", 300)):
        monkeypatch.setattr(shard_search, name, size)
    codes, queries = make_codes(1200, 48), make_codes(count, 48, seed=1)
    index = ShardArrays(48, threads)
    for part in np.array_split(codes, [3, 500, 501, 900]):
        index.add(part)
    removed = np.union1d(np.arange(450, 520), [0, 1, 2, 1199])
    for k in (1, 300):
        assert_answers(index, queries, k, sort_pairs(queries, codes, 48, k))
    index.remove(removed)
    rows = np.setdiff1d(np.arange(1200), removed)
    for k in (1, 300):
        assert_answers(index, queries, k, sort_pairs(queries, codes[rows], 48, k, rows.tolist()))


@pytest.mark.parametrize("bits", [20, 48, 64, 200])
@pytest.mark.parametrize("threads", [1, 3])
def test_bit_identical_to_one_index(folder, bits, threads):
    codes, queries = make_codes(3500, bits), make_codes(30, bits, seed=1)
    one, shards = create_index(bits, "numpy"), open_index(folder, bits, threads=threads)
    removed = np.random.default_rng(3).permutation(3500)[:900]
    removed = np.union1d(removed, np.arange(1000, 2000))  # a shard without any code left
    for index in (one, shards):
        index.add(codes[:2500])
        index.add(codes[2500:])
    for k in (1, 700, 3500):
        assert_answers(shards, queries, k, one.search(queries, k))
    for index in (one, shards):
        index.remove(removed)
    again = open_index(folder, bits)
    for index in (shards, again):
        assert len(index) == len(one)
        for k in (1, 700, 3500):
            assert_answers(index, queries, k, one.search(queries, k))
        np.testing.assert_array_equal(index.codes, one.codes)


def test_adding_does_not_touch_earlier_shards(folder):
    index = open_index(folder)
    index.add(make_codes(1500, 48))

    def states():
        return {path.name: path.stat().st_mtime_ns for path in folder.glob("codes-*.npy")}

    before = states()
    assert len(before) == 2
    index.remove([3, 1400])
    index.add(make_codes(10, 48))
    assert before.items() < states().items()
    assert len(states()) == 3
    assert open_index(folder).holds([2, 3, 1400, 1509]).tolist() == [True, False, False, True]


def test_codes_are_mapped(folder):
    index = open_index(folder)
    index.add(make_codes(1500, 48))
    with open("/proc/self/maps") as maps:
        mapped = [line.split()[-1] for line in maps if "codes-" in line]
    assert {str(folder / f"codes-{i}.npy") for i in (1, 2)} <= set(mapped)


def test_a_write_that_was_cut_off_leaves_the_index_as_it_was(folder, full_disk):
    index = open_index(folder)
    index.add(make_codes(500, 48))
    with full_disk(2000), pytest.raises(OSError, match=str(folder)):
        open_index(folder).add(make_codes(900, 48))
    (folder / "codes-7.npy").write_bytes(b"of a killed process")
    again = open_index(folder)
    assert len(again) == 500
    again.add(make_codes(5, 48))
    assert len(open_index(folder)) == 505
    assert sorted(os.listdir(folder)) == [".lock", "codes-1.npy", "codes-8.npy", "shards.json"]


@pytest.mark.parametrize("missing", [1, 100, 5000])
def test_no_file_is_short_where_the_disk_is_full(tmp_path, full_disk, missing):
    values, path = make_codes(1000, 64), tmp_path / "a.npy"
    write_array(path, values)
    size = path.stat().st_size
    assert np.array_equal(np.load(path), values)
    path.unlink()
    with full_disk(size - missing), pytest.raises(OSError, match="a.npy"):
        write_array(path, values)
    assert os.listdir(tmp_path) == []


def test_a_failed_write_can_be_tried_again(folder, full_disk):
    codes = make_codes(300, 48)
    index = open_index(folder)
    index.add(codes[:100])
    with full_disk(200), pytest.raises(OSError, match="codes-2"):
        index.add(codes[100:])
    assert len(index) == 100
    assert index.add(codes[100:]).tolist() == list(range(100, 300))
    for found in (index, open_index(folder)):
        assert np.array_equal(found.codes, codes)


def test_of_two_writers_the_second_loses_nothing_of_the_first(folder):
    codes = make_codes(300, 48)
    first, second = open_index(folder), open_index(folder)
    first.add(codes[:200])
    for write in (
        lambda: second.add(codes[200:]),
        lambda: second.remove([0]) if len(second) else second.add(codes[:1]),
    ):
        with pytest.raises(IndexFileError, match=r"written by another process .* open it again"):
            write()
    second = open_index(folder)
    second.remove([5])
    with pytest.raises(IndexFileError, match="open it again"):
        first.remove([6])
    assert len(first) == 200
    assert first.holds([6])
    second.add(codes[200:])
    assert np.array_equal(open_index(folder).codes, np.delete(codes, 5, axis=0))


def test_one_writer_at_a_time(folder):
    codes, index = make_codes(10, 48), open_index(folder)
    other = open_index(folder)
    with index._writing(), pytest.raises(FileInUseError, match="in use by another program"):
        other.add(codes)
    other.add(codes)
    assert len(open_index(folder)) == 10


def add_until_killed(folder, codes, files):
    """Add codes in a process that is killed when it has written some files."""
    replace = os.replace

    def killing_replace(*names):
        nonlocal files
        files -= 1
        if files < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*names)

    os.replace = killing_replace
    open_index(folder).add(codes)


@pytest.mark.parametrize(("present", "files"), [(700, 0), (700, 1), (700, 2), (0, 0), (0, 2)])
def test_a_kill_in_mid_load(folder, present, files):
    """The folder is as before, and the same codes can be added again: no row is there twice."""
    codes = make_codes(present + 1800, 48)
    open_index(folder).add(codes[:present])
    fork = multiprocessing.get_context("fork")
    loader = fork.Process(target=add_until_killed, args=(folder, codes[present:], files))
    loader.start()
    loader.join()
    assert loader.exitcode == -signal.SIGKILL
    before = sort_pairs(codes[:2], codes[:present], 48, 300)
    assert_answers(open_index(folder), codes[:2], 300, before)
    assert open_index(folder).add(codes[present:])[0] == present
    assert_answers(open_index(folder), codes[:2], 900, sort_pairs(codes[:2], codes, 48, 900))
    # The record, what was there, 1,000 and 800 codes; no other file that a search might read.
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    assert len(names) == 3 + (present > 0)


def test_other_folders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="needs path"):
        create_index(48, "shards")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(IndexFileError, match=r"holds files but no shards\.json"):
        open_index(tmp_path)
    open_index(folder).add(make_codes(5, 48))
    with pytest.raises(IndexFileError, match="is of codes of 48 bits, this index of 20"):
        open_index(folder, 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not of format"),
        ({"version": 2}, "version 2; update"),
        ({"removed": "../secret.npy"}, "values are wrong"),
        ({"shards": [{"file": "../codes-1.npy", "first_row": 0, "count": 5}]}, "values are wrong"),
        ({"shards": [{"file": "codes-1.npy", "first_row": 1, "count": 5}]}, "values are wrong"),
        ({"shards": [{"file": "codes-1.npy", "first_row": 0, "count": 6}]}, "values are wrong"),
        ({"shards": [{"file": "codes-1.npy", "first_row": 0, "count": 4}]}, "holds uint8 of shape"),
        ({"shards": [{"file": "codes-9.npy", "first_row": 0, "count": 5}]}, "missing or damaged"),
    ],
)
def test_damage_is_told(folder, change, message):
    open_index(folder).add(make_codes(5, 48))
    record = json.loads((folder / "shards.json").read_text())
    (folder / "shards.json").write_text(json.dumps(record | change))
    with pytest.raises(IndexFileError, match=message):
        open_index(folder)
