"""Hamming indexes: every engine answers as a sort of (distance, row) pairs in Python does."""

import importlib.util
import os
import sys

import numpy as np
import pytest

from regiondh_d2.retrieval import hamming_index
from regiondh_d2.retrieval.hamming_index import IndexFileError, create_index, self_recall
from regiondh_d2.structures.packed import pack_codes, unpack_codes

EXACT = ["faiss", "numpy"]


def make_codes(rows, bits, seed=0, share=0.3):
    """Packed codes with many equal distances: few patterns, each with a few flipped bits."""
    rng = np.random.default_rng(seed)
    patterns = rng.random((20, bits)) < 0.5
    flips = rng.random((rows, bits)) < share / bits
    return pack_codes(patterns[rng.integers(0, 20, rows)] ^ flips)


def sort_pairs(queries, codes, bits, k, rows=None):
    """The oracle: distances of unpacked codes, and a sort of Python tuples."""
    rows = range(len(codes)) if rows is None else rows
    queries, codes = unpack_codes(queries, bits), unpack_codes(codes, bits)
    nearest = [
        sorted(zip(np.count_nonzero(codes != query, axis=1).tolist(), rows, strict=True))[:k]
        for query in queries
    ]
    pairs = np.array(nearest, np.int64).reshape(len(queries), -1, 2)
    return pairs[..., 0], pairs[..., 1]


def assert_answers(index, queries, k, expected):
    distances, rows = index.search(queries, k)
    assert distances.dtype == np.int32
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows, expected[1])
    np.testing.assert_array_equal(distances, expected[0])


@pytest.fixture(params=EXACT)
def engine(request):
    return request.param


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
    for engine in EXACT:
        index = create_index(bits, engine)
        index.add(codes[:1])
        index.add(codes[1:])
        assert_answers(index, queries, k, before)
        index.remove(removed)
        assert len(index) == 70_000
        assert_answers(index, queries, k, after)
        index.save(tmp_path / f"{engine}.npz")
    for engine in EXACT:
        for writer in EXACT:
            loaded = create_index(bits, engine)
            loaded.load(tmp_path / f"{writer}.npz")
            assert_answers(loaded, queries, k, after)


@pytest.mark.parametrize("bits", [1, 8, 20, 33, 48, 64, 100, 128, 200, 256, 300])
@pytest.mark.parametrize("way", ["faiss counting", "faiss heap", "numpy"])
def test_any_length_and_way_of_selection(monkeypatch, bits, way):
    """FAISS doesn't promise the order of equal distances; here is what holds it to it."""
    if way == "faiss heap":
        monkeypatch.setattr(hamming_index, "_COUNTING_ROWS", 0)
    monkeypatch.setattr(hamming_index, "_BLOCK", 300)  # several blocks, the last one not full
    index = create_index(bits, way.split()[0])
    codes, queries = make_codes(2000, bits), make_codes(40, bits, seed=1)
    index.add(codes)
    for k in (1, 7, 150, 1999, 2000):
        assert_answers(index, queries, k, sort_pairs(queries, codes, bits, k))
    if way != "numpy":
        assert index._index.use_heap == (way == "faiss heap")


def test_counting_is_kept_within_its_memory(monkeypatch):
    """One query of 64 bits and k = 100 needs 65 * 100 * 8 bytes."""
    index = create_index(64)
    codes, queries = make_codes(1000, 64), make_codes(50, 64, seed=1)
    index.add(codes)
    expected = sort_pairs(queries, codes, 64, 100)
    for limit, batch, heap in ((156_000, 3, False), (52_000, 1, False), (51_999, 1, True)):
        monkeypatch.setattr(hamming_index, "_COUNTING_BYTES", limit)
        assert_answers(index, queries, 100, expected)
        assert (index._index.query_batch_size, index._index.use_heap) == (batch, heap)


def test_few_of_many_codes_are_selected_with_the_heap(monkeypatch):
    monkeypatch.setattr(hamming_index, "_COUNTING_SHARE", 0.01)
    index = create_index(64)
    codes, queries = make_codes(1000, 64), make_codes(5, 64, seed=1)
    index.add(codes)
    for k, heap in ((10, True), (11, False)):
        assert_answers(index, queries, k, sort_pairs(queries, codes, 64, k))
        assert index._index.use_heap is heap


def test_few_queries_take_few_threads(monkeypatch):
    index = create_index(64)
    index.add(make_codes(10, 64))
    faiss, asked = index._faiss, []
    monkeypatch.setattr(faiss, "omp_get_max_threads", lambda: 4)
    monkeypatch.setattr(faiss, "omp_set_num_threads", asked.append)
    for queries in (1, 7, 8, 1000):
        index.search(make_codes(queries, 64), 1)
    assert asked == [1, 4, 1, 4, 2, 4, 4, 4]  # and as before after each search


def test_an_empty_index_and_no_queries(engine, tmp_path):
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


def test_k_above_the_size_gives_all(engine):
    index = create_index(48, engine)
    codes = make_codes(6, 48)
    index.add(codes)
    assert_answers(index, codes[:2], 1000, sort_pairs(codes[:2], codes, 48, 6))


def test_rows_are_never_given_again(engine, tmp_path):
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


@pytest.mark.parametrize("rows", [[1, 5], [-1], [3, 2], [0.0], [True]])
def test_removing_what_is_not_there_changes_nothing(engine, rows):
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
def test_codes_that_do_not_fit_are_refused(engine, codes, message):
    index = create_index(20, engine)
    index.add(make_codes(5, 20))
    with pytest.raises(ValueError, match=message):
        index.search(codes, 2)
    with pytest.raises(ValueError, match=message):
        index.add(codes)
    assert len(index) == 5


@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_k_must_be_a_positive_integer(engine, k):
    with pytest.raises(ValueError, match="k must be a positive integer"):
        create_index(8, engine).search(make_codes(1, 8), k)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0,), {}, "bits must be"),
        ((8, "annoy"), {}, "use faiss or numpy"),
        ((8, "numpy"), {"nlist": 4}, "'numpy' does not take nlist"),
        ((8,), {"nprobe": 4}, "'faiss' does not take nprobe"),
        ((8,), {"nlist": 4, "M": 4}, "does not take M, nlist"),
        ((8,), {"nlist": 0}, "nlist must be"),
        ((8,), {"nlist": 4, "nprobe": 5}, "nprobe 5 is above nlist 4"),
    ],
)
def test_wrong_options(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        create_index(*arguments, **options)


def test_a_missing_faiss_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    name = "regiondh_d2.retrieval.imported_without_faiss"
    spec = importlib.util.spec_from_file_location(name, hamming_index.__file__)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    assert len(fresh.create_index(8, "numpy")) == 0
    with pytest.raises(ImportError, match="pip install faiss-cpu, or choose engine 'numpy'"):
        fresh.create_index(8)


# --------------------------------------------------------------------------------------------------
# Files


def write_arrays(path, **changes):
    arrays = {
        "bits": np.int64(20),
        "codes": make_codes(4, 20),
        "removed": np.array([1, 5]),
    } | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


def test_the_file_is_the_documented_one(engine, tmp_path):
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
def test_inconsistent_files_are_refused(engine, tmp_path, changes, message):
    path = tmp_path / "index.npz"
    write_arrays(path, **changes)
    index = create_index(20, engine)
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
        create_index(20, "numpy").load(path)


def test_damage_is_found(tmp_path):
    """Whatever byte is wrong, and wherever the file ends: an error of ours, or the same index."""
    path = tmp_path / "index.npz"
    codes = make_codes(50, 20)
    index = create_index(20, "numpy")
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


def test_an_interrupted_save_leaves_the_old_file(engine, tmp_path, monkeypatch):
    path = tmp_path / "index.npz"
    index = create_index(20, engine)
    index.save(path)
    index.add(make_codes(3, 20))

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(hamming_index.np, "savez", fail)
    with pytest.raises(KeyboardInterrupt):
        index.save(path)
    assert os.listdir(tmp_path) == ["index.npz"]
    index.load(path)
    assert len(index) == 0


# --------------------------------------------------------------------------------------------------
# Approximate search


@pytest.fixture
def ivf():
    index = create_index(64, nlist=16, nprobe=2)
    index.add(make_codes(4000, 64))
    return index


def test_ivf_over_all_lists_is_exact():
    """Up to which of the equally far codes stand at the last places."""
    codes, queries = make_codes(4000, 48), make_codes(5, 48, seed=1)
    index = create_index(48, nlist=16, nprobe=16)
    assert not index.exact
    index.add(codes)
    distances, rows = index.search(queries, 4000)
    np.testing.assert_array_equal(rows, sort_pairs(queries, codes, 48, 4000)[1])
    distances, rows = index.search(queries, 300)
    np.testing.assert_array_equal(distances, sort_pairs(queries, codes, 48, 300)[0])
    assert self_recall(index) == 1.0


def test_ivf_pads_as_faiss_does(ivf):
    distances, rows = ivf.search(make_codes(5, 64), 4000)
    assert rows.shape == (5, 4000)
    missing = rows < 0
    assert missing.any(axis=1).all()
    assert (rows[missing] == -1).all()
    assert (distances[missing] == np.iinfo(np.int32).max).all()
    for row, count in zip(rows, (~missing).sum(1), strict=True):
        assert len(np.unique(row[:count])) == count
    keys = distances.astype(np.int64) * 10_000 + rows
    assert (np.diff(keys, axis=1)[~missing[:, 1:]] > 0).all()


def test_ivf_before_and_after_save_load_and_remove(ivf, tmp_path):
    queries = make_codes(20, 64, seed=1)
    removed = np.arange(0, 4000, 3)
    whole = ivf.search(queries, 4000)
    ivf.remove(removed)
    distances, rows = ivf.search(queries, len(ivf))
    for i in range(len(queries)):
        kept = (whole[1][i] >= 0) & ~np.isin(whole[1][i], removed)
        np.testing.assert_array_equal(rows[i][rows[i] >= 0], whole[1][i][kept])
    ivf.save(tmp_path / "ivf.npz")
    loaded = create_index(64, nlist=16, nprobe=2)
    loaded.load(tmp_path / "ivf.npz")
    assert_answers(loaded, queries, len(ivf), (distances, rows))
    exact = create_index(64, "numpy")
    exact.load(tmp_path / "ivf.npz")
    codes = np.delete(make_codes(4000, 64), removed, 0)
    kept = np.delete(np.arange(4000), removed).tolist()
    assert_answers(exact, queries, 50, sort_pairs(queries, codes, 64, 50, kept))


def test_ivf_trains_on_a_file_without_fitting_lists(ivf, tmp_path):
    ivf.save(tmp_path / "ivf.npz")
    other = create_index(64, nlist=8, nprobe=8)
    other.load(tmp_path / "ivf.npz")
    assert self_recall(other) == 1.0
    too_many = create_index(64, nlist=5000)
    with pytest.raises(ValueError, match="nlist 5000 needs at least as many codes"):
        too_many.load(tmp_path / "ivf.npz")
    assert len(too_many) == 0


def test_self_recall():
    """Against counting by hand, on codes without clusters, where most neighbors are lost."""
    codes = pack_codes(np.random.default_rng(0).random((500, 64)) < 0.5)
    index = create_index(64, nlist=8, nprobe=1)
    index.add(codes)
    bits = unpack_codes(codes, 64)
    scores = []
    for i, found in enumerate(index.search(codes, 500)[1]):
        distances = np.count_nonzero(bits != bits[i], axis=1)
        limit = np.sort(np.delete(distances, i))[19]
        others = [row for row in found if row not in (i, -1)][:20]
        scores.append(sum(distances[row] <= limit for row in others) / 20)
    assert 0.1 < np.mean(scores) < 0.9
    assert self_recall(index, k=20, samples=500) == pytest.approx(np.mean(scores))
    assert self_recall(index, k=20, samples=100) == pytest.approx(np.mean(scores), abs=0.1)


def test_self_recall_of_exact_and_tiny_indexes(engine):
    index = create_index(20, engine)
    for rows in (0, 1, 1, 30):
        index.add(make_codes(rows, 20))
        assert self_recall(index) == 1.0
