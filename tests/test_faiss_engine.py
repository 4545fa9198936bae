"""The exact engine of FAISS: its ways of selection, and its threads."""

import os
import sys
import threading

import pytest

from index_oracle import assert_answers, make_codes, sort_pairs
from regiondh_d2.retrieval.engines import create_index, faiss_engine, faiss_threads

faiss = pytest.importorskip("faiss")


@pytest.fixture
def calls(monkeypatch):
    """A list of (way of selection, queries) of each call of FAISS."""
    made, real = [], faiss.knn_hamming

    def knn_hamming(queries, codes, k, variant):
        made.append((variant, len(queries)))
        return real(queries, codes, k, variant)

    monkeypatch.setattr(faiss, "knn_hamming", knn_hamming)
    return made


@pytest.fixture
def two_threads():
    """FAISS may use two threads in this one, whatever the machine has."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    yield
    faiss.omp_set_num_threads(before)


@pytest.mark.parametrize("bits", [1, 8, 20, 33, 48, 64, 100, 128, 200, 256, 300])
@pytest.mark.parametrize("way", ["mc", "hc"])
def test_any_length_and_way_of_selection(monkeypatch, calls, bits, way):
    """FAISS doesn't promise the order of equal distances; here is what holds it to it."""
    if way == "hc":
        monkeypatch.setattr(faiss_engine, "_COUNTING_ROWS", 0)
    index = create_index(bits)
    codes, queries = make_codes(2000, bits), make_codes(40, bits, seed=1)
    index.add(codes)
    for k in (1, 7, 150, 1999, 2000):
        assert_answers(index, queries, k, sort_pairs(queries, codes, bits, k))
    assert {variant for variant, _ in calls} == {way}


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (208_000, [("mc", 2)] * 8),
        (52_000, [("mc", 1)] * 16),
        (51_999, [("hc", 8)] * 2),
        (1 << 40, [("mc", 8)] * 2),
    ],
)
def test_counting_is_kept_within_its_memory(monkeypatch, calls, two_threads, limit, expected):
    """One query of 64 bits and k = 100 needs 65 * 100 * 8 bytes; two threads have 16 queries."""
    index = create_index(64)
    codes, queries = make_codes(1000, 64), make_codes(16, 64, seed=1)
    index.add(codes)
    monkeypatch.setattr(faiss_engine, "_COUNTING_BYTES", limit)
    assert_answers(index, queries, 100, sort_pairs(queries, codes, 64, 100))
    assert calls == expected


def test_few_of_many_codes_are_selected_with_the_heap(monkeypatch, calls):
    monkeypatch.setattr(faiss_engine, "_COUNTING_SHARE", 0.01)
    index = create_index(64)
    codes, queries = make_codes(1000, 64), make_codes(5, 64, seed=1)
    index.add(codes)
    for k, way in ((10, "hc"), (11, "mc")):
        calls.clear()
        assert_answers(index, queries, k, sort_pairs(queries, codes, 64, k))
        assert calls == [(way, 5)]


def test_few_queries_take_few_threads(monkeypatch, calls):
    monkeypatch.setattr(faiss, "omp_get_max_threads", lambda: 4)
    index = create_index(64)
    index.add(make_codes(10, 64))
    for queries, parts in ((1, [1]), (7, [7]), (8, [4, 4]), (100, [25] * 4)):
        calls.clear()
        index.search(make_codes(queries, 64), 1)
        assert sorted(count for _, count in calls) == parts


def test_a_search_changes_no_number_of_threads_but_its_own(monkeypatch, two_threads):
    """Neither in the thread that asks nor in others; FAISS itself works with one thread."""
    index = create_index(64)
    index.add(make_codes(1000, 64))
    seen, real = [], faiss.knn_hamming

    def knn_hamming(*args, **options):
        seen.append((threading.current_thread(), faiss.omp_get_max_threads()))
        return real(*args, **options)

    def number_of_threads():
        numbers = []
        thread = threading.Thread(target=lambda: numbers.append(faiss.omp_get_max_threads()))
        thread.start()
        thread.join()
        return numbers[0]

    before = number_of_threads()
    monkeypatch.setattr(faiss, "knn_hamming", knn_hamming)
    for count in (1, 100):
        index.search(make_codes(count, 64), 5)
        assert faiss.omp_get_max_threads() == 2
        assert number_of_threads() == before
    assert threading.current_thread() not in {thread for thread, _ in seen}
    assert {number for _, number in seen} == {1}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_process_searches_too(two_threads):
    """Its parent's threads are not there."""
    index = create_index(64)
    codes = make_codes(1000, 64)
    index.add(codes)
    expected = sort_pairs(codes[:20], codes, 64, 5)
    assert_answers(index, codes[:20], 5, expected)
    child = os.fork()
    if not child:
        try:
            assert_answers(index, codes[:20], 5, expected)
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_errors_of_a_thread_are_raised(monkeypatch, two_threads):
    def fail(queries):
        raise RuntimeError("no more memory")

    with pytest.raises(RuntimeError, match="no more memory"):
        faiss_threads.search_in_parts(fail, make_codes(20, 64), 32)


def test_a_missing_faiss_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert len(create_index(8, "numpy")) == 0
    for options in ({}, {"nlist": 4}):
        with pytest.raises(ImportError, match="pip install faiss-cpu, or choose engine 'numpy'"):
            create_index(8, **options)
