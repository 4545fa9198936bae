"""One suite for all engines: each answers as a sort of (distance, row) pairs in Python does.

The tests of Milvus run where pymilvus is installed, see ``make test-milvus``: in Milvus Lite, or in
the server that REGIONDH_TEST_MILVUS names.
"""

import os
import threading

import numpy as np
import pytest

from index_oracle import MEMORY_ENGINES, STORED_ENGINES, assert_answers, make_codes, sort_pairs
from regiondh_d2.retrieval import engines, index_file
from regiondh_d2.retrieval.engines import self_recall
from regiondh_d2.retrieval.index_file import IndexFileError
from regiondh_d2.structures.packed import unpack_codes

create_in_memory = engines.create_index


@pytest.fixture(params=[*MEMORY_ENGINES, *STORED_ENGINES])
def engine(request):
    return request.param


@pytest.fixture(params=MEMORY_ENGINES)
def memory_engine(request):
    return request.param


@pytest.fixture
def create_index(new_index):
    """As the library's, with a new place for an engine that stores its codes."""
    return new_index


@pytest.mark.parametrize("bits", [20, 32, 48, 64])
def test_100_000_codes_before_and_after_remove_save_and_load(tmp_path, bits):
    codes, queries, k = make_codes(100_000, bits), make_codes(3, bits, seed=1), 500
    removed = np.random.default_rng(2).permutation(100_000)[:30_000]
    rows = np.setdiff1d(np.arange(100_000), removed)
    before = sort_pairs(queries, codes, bits, k)
    after = sort_pairs(queries, codes[rows], bits, k, rows.tolist())
    # The k-th place divides equally far codes, so the choice among them is tested.
    distances = np.count_nonzero(unpack_codes(codes, bits) != unpack_codes(queries, bits)[0], 1)
    assert np.sum(distances == before[0][0, -1]) > np.sum(before[0][0] == before[0][0, -1]) > 1
    for engine in MEMORY_ENGINES:
        index = create_in_memory(bits, engine)
        index.add(codes[:1])
        index.add(codes[1:])
        assert_answers(index, queries, k, before)
        index.remove(removed)
        assert len(index) == 70_000
        assert_answers(index, queries, k, after)
        index.save(tmp_path / f"{engine}.npz")
    for engine in MEMORY_ENGINES:
        for writer in MEMORY_ENGINES:
            loaded = create_in_memory(bits, engine)
            loaded.load(tmp_path / f"{writer}.npz")
            assert_answers(loaded, queries, k, after)


def test_an_empty_index_and_no_queries(create_index, engine, tmp_path):
    index = create_index(20, engine)
    index.save(tmp_path / "empty.npz")
    index.load(tmp_path / "empty.npz")
    for queries, k in ((4, 3), (0, 3)):
        distances, rows = index.search(make_codes(queries, 20), k)
        assert distances.shape == rows.shape == (queries, 0)
        assert (distances.dtype, rows.dtype) == (np.int32, np.int64)
        assert len(index.add(make_codes(0, 20))) == 0
        assert len(index) == index.next_row == 0
    index.add(make_codes(5, 20))
    assert index.search(make_codes(0, 20), 3)[1].shape == (0, 3)


def test_k_above_the_size_gives_all(create_index, engine):
    index = create_index(48, engine)
    codes = make_codes(6, 48)
    index.add(codes)
    assert_answers(index, codes[:2], 1000, sort_pairs(codes[:2], codes, 48, 6))


def test_rows_are_never_given_again(create_index, engine, tmp_path):
    index = create_index(20, engine)
    codes = make_codes(8, 20)
    assert index.add(codes[:5]).tolist() == [0, 1, 2, 3, 4]
    index.remove([4, 1, 4])
    index.remove([])
    assert index.add(codes[5:6]).tolist() == [5]
    index.remove(np.array([5]))  # the last row, so the file must remember that there was one
    index.save(tmp_path / "index.npz")
    loaded = create_index(20, engine)
    loaded.add(codes)  # replaced by the file's
    loaded.load(tmp_path / "index.npz")
    assert (len(loaded), loaded.next_row) == (3, 6)
    assert loaded.add(codes[6:]).tolist() == [6, 7]
    rows = [0, 2, 3, 6, 7]
    assert_answers(loaded, codes[:2], 9, sort_pairs(codes[:2], codes[rows], 20, 9, rows))
    loaded.remove(rows)
    assert loaded.search(codes, 2)[1].shape == (8, 0)


def test_before_and_after_remove_reload_save_and_load(create_index, engine, tmp_path):
    bits, k = 20, 150
    codes, queries = make_codes(900, bits), make_codes(3, bits, seed=1)
    removed = np.random.default_rng(2).permutation(900)[:300]
    rows = np.setdiff1d(np.arange(900), removed)
    after = sort_pairs(queries, codes[rows], bits, k, rows.tolist())
    index = create_index(bits, engine)
    index.add(codes[:1])
    index.add(codes[1:])
    assert_answers(index, queries, k, sort_pairs(queries, codes, bits, k))
    index.remove(removed)
    assert_answers(index, queries, k, after)
    if engine in STORED_ENGINES:
        again = create_index(bits, engine, like=index)
        assert (len(again), again.next_row) == (600, 900)
        np.testing.assert_array_equal(again.codes, codes[rows])
        assert_answers(again, queries, k, after)
    index.save(tmp_path / "index.npz")
    loaded = create_index(bits, engine)
    loaded.load(tmp_path / "index.npz")
    assert_answers(loaded, queries, k, after)
    if engine in STORED_ENGINES:
        assert_answers(create_index(bits, engine, like=loaded), queries, k, after)


@pytest.mark.parametrize("rows", [[1, 5], [-1], [3, 2], [0.0], [True]])
def test_removing_what_is_not_there_changes_nothing(create_index, engine, rows):
    index = create_index(20, engine)
    codes = make_codes(5, 20)
    index.add(codes)
    index.remove([3])
    with pytest.raises(ValueError, match=r"row (5|-1|3) is not in|must be integers"):
        index.remove(rows)
    kept = [0, 1, 2, 4]
    assert_answers(index, codes, 9, sort_pairs(codes, codes[kept], 20, 9, kept))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((2, 4), np.uint8), r"\(N, 3\) for 20 bits, not uint8 of shape \(2, 4\)"),
        (np.zeros((2, 20), bool), "not bool"),
        (np.zeros(3, np.uint8), r"of shape \(3,\)"),
        (np.full((2, 3), 1, np.uint8), "beyond the declared 20"),
    ],
)
def test_codes_that_do_not_fit_are_refused(create_index, engine, codes, message):
    index = create_index(20, engine)
    index.add(make_codes(5, 20))
    with pytest.raises(ValueError, match=message):
        index.search(codes, 2)
    with pytest.raises(ValueError, match=message):
        index.add(codes)
    assert len(index) == 5


@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_k_must_be_a_positive_integer(create_index, engine, k):
    with pytest.raises(ValueError, match="k must be a positive integer"):
        create_index(8, engine).search(make_codes(1, 8), k)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0,), {}, "bits must be"),
        ((8, "annoy"), {}, "use faiss or numpy or milvus"),
        ((8, "numpy"), {"nlist": 4}, "'numpy' does not take nlist"),
        ((8,), {"nprobe": 4}, "'faiss' does not take nprobe"),
        ((8,), {"nlist": 4, "M": 4}, "does not take M"),
        ((8,), {"nlist": 0}, "nlist must be"),
        ((8,), {"nlist": 4, "nprobe": 5}, "nprobe 5 is above nlist 4"),
    ],
)
def test_wrong_options(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        create_in_memory(*arguments, **options)


# --------------------------------------------------------------------------------------------------
# Files


def write_arrays(path, **changes):
    arrays = {
        "bits": np.int64(20),
        "codes": make_codes(4, 20),
        "removed": np.array([1, 5]),
    } | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


def test_the_file_is_the_documented_one(create_index, engine, tmp_path):
    index = create_index(20, engine)
    codes = make_codes(6, 20)
    index.add(codes)
    index.remove([1, 5])
    index.save(tmp_path / "new" / "index.npz")
    with np.load(tmp_path / "new" / "index.npz") as file:
        assert {name: file[name].dtype for name in file} == {
            "bits": np.int64,
            "codes": np.uint8,
            "removed": np.int64,
        }
        assert file["bits"] == 20
        np.testing.assert_array_equal(file["codes"], codes[[0, 2, 3, 4]])
        assert file["removed"].tolist() == [1, 5]
    write_arrays(tmp_path / "index.npz", codes=codes[[0, 2, 3, 4]])
    index.load(tmp_path / "index.npz")
    assert index.search(codes[:1], 9)[1][0, 0] == 0
    assert sorted(index.search(codes[:1], 9)[1][0]) == [0, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": np.int64(24)}, "holds codes of 24 bits, this index 20; create it with bits=24"),
        ({"bits": np.array([20, 20])}, "holds codes of"),
        ({"codes": None}, "codes is missing"),
        ({"removed": None}, "removed is missing"),
        ({"codes": np.zeros((4, 2), np.uint8)}, "codes must be packed uint8"),
        ({"codes": np.full((4, 3), 1, np.uint8)}, "beyond the declared 20"),
        ({"removed": np.array([1, 6])}, "not a list of rows below 6"),
        ({"removed": np.array([1, 1])}, "not a list of rows below 6"),
        ({"removed": np.array([1, -1])}, "not a list of rows below 6"),
        ({"removed": np.array([1.0, 5.0])}, "not a list of rows below 6"),
        ({"codes": np.array([None])}, "not a readable index file"),
    ],
)
def test_inconsistent_files_are_refused(memory_engine, tmp_path, changes, message):
    path = tmp_path / "index.npz"
    write_arrays(path, **changes)
    index = create_in_memory(20, memory_engine)
    index.add(make_codes(3, 20))
    with pytest.raises(IndexFileError, match=message) as error:
        index.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(index) == len(index.search(make_codes(1, 20), 9)[1][0]) == 3


@pytest.mark.parametrize("content", [b"", b"codes", b"PK\x05\x06" + bytes(18), None])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "index.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(IndexFileError, match="index.npz: "):
        create_in_memory(20, "numpy").load(path)


def test_damage_is_found(tmp_path):
    """Whatever byte is wrong, and wherever the file ends: an error of ours, or the same index."""
    path = tmp_path / "index.npz"
    codes = make_codes(50, 20)
    index = create_in_memory(20, "numpy")
    index.add(codes)
    index.save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.integers(0, len(whole), 300):
        for damaged in (
            whole[:place],
            whole[:place] + bytes([whole[place] ^ rng.integers(1, 256)]) + whole[place + 1 :],
        ):
            path.write_bytes(damaged)
            try:
                index.load(path)
            except IndexFileError:
                refused += 1
            assert_answers(index, codes[:1], 9, sort_pairs(codes[:1], codes, 20, 9))
    assert refused > 300


def test_an_interrupted_save_leaves_the_old_file(memory_engine, tmp_path, monkeypatch):
    path = tmp_path / "index.npz"
    index = create_in_memory(20, memory_engine)
    index.save(path)
    index.add(make_codes(3, 20))

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(index_file.np, "savez", fail)
    with pytest.raises(KeyboardInterrupt):
        index.save(path)
    assert os.listdir(tmp_path) == ["index.npz"]
    index.load(path)
    assert len(index) == 0


# --------------------------------------------------------------------------------------------------
# Threads, and memory


@pytest.mark.parametrize("engine", [*MEMORY_ENGINES, "shards"])
def test_threads_that_search_at_once_find_what_they_find_alone(create_index, engine):
    """With different k, which FAISS selects in different ways, and different numbers of queries."""
    codes = make_codes(20_000, 48)
    index = create_index(48, engine)
    index.add(codes)
    asked = [(make_codes(count, 48, seed=count), k) for count in (1, 9, 40) for k in (1, 3, 500)]
    alone = [index.search(queries, k) for queries, k in asked]
    start, wrong = threading.Barrier(len(asked)), []

    def search(number):
        queries, k = asked[number]
        start.wait()
        for _ in range(10):
            found = index.search(queries, k)
            if not all(map(np.array_equal, found, alone[number])):
                wrong.append((len(queries), k))

    threads = [threading.Thread(target=search, args=(i,)) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("bits", [20, 32, 48, 64, 128])
def test_codes_are_held_once(memory_engine, bits):
    """Those that fit are the array that was given, and others are held as the engine wants them."""
    codes = make_codes(100, bits)
    index = create_in_memory(bits, memory_engine)
    index.add(codes)
    assert np.shares_memory(index.codes, codes) == (bits in (32, 64, 128))
    assert np.shares_memory(index.codes, index.codes)
    np.testing.assert_array_equal(index.codes, codes)
    with pytest.raises(ValueError, match="read-only"):
        index.codes[0] = 0
    index.add(codes[:1])
    np.testing.assert_array_equal(codes, make_codes(100, bits))
    index.remove([0])
    np.testing.assert_array_equal(index.codes, np.concatenate([codes[1:], codes[:1]]))


def test_self_recall_of_exact_and_tiny_indexes(create_index, engine):
    index = create_index(20, engine)
    for rows in (0, 1, 1, 30):
        index.add(make_codes(rows, 20))
        assert self_recall(index) == 1.0
