"""Approximate search in FAISS's inverted lists."""

import threading

import numpy as np
import pytest

from index_oracle import assert_answers, make_codes, sort_pairs
from regiondh_d2.retrieval.engines import create_index, self_recall
from regiondh_d2.structures.packed import pack_codes, unpack_codes

pytest.importorskip("faiss")


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


def test_codes_of_removed_rows_are_forgotten(ivf):
    """Also where a list holds none any more; the rows stay those of the codes."""
    codes = make_codes(4000, 64)
    ivf.remove(np.arange(3990))
    np.testing.assert_array_equal(ivf.codes, codes[3990:])
    assert ivf.add(codes[:2]).tolist() == [4000, 4001]
    np.testing.assert_array_equal(ivf.codes, np.concatenate([codes[3990:], codes[:2]]))
    assert set(ivf.search(codes[:1], 12)[1][0].tolist()) <= {-1, *range(3990, 4002)}


def test_threads_that_search_lists_at_once_find_what_they_find_alone(ivf):
    asked = [(make_codes(count, 64, seed=count), k) for count in (1, 40) for k in (3, 500)]
    alone = [ivf.search(queries, k) for queries, k in asked]
    wrong = []

    def search(number):
        for _ in range(20):
            if not all(map(np.array_equal, ivf.search(*asked[number]), alone[number])):
                wrong.append(number)

    threads = [threading.Thread(target=search, args=(i,)) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
