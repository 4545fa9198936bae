"""FAISS, and threads for its searches.

FAISS divides the queries among OpenMP threads, which wait for each other after every block of
codes. With few queries, or beside other work, the waiting costs more than the threads gain: up to
170 times the search itself on a busy machine. So we divide the queries ourselves, among threads
that use one OpenMP thread each. OpenMP keeps that number per thread, so other threads are not
affected.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import ModuleType

import numpy as np

from ...utils.errors import MissingPackageError

__all__ = ["import_faiss", "openmp_threads", "search_in_parts", "workers"]

_QUERIES_PER_THREAD = 4

Found = tuple[np.ndarray, np.ndarray]


def import_faiss() -> ModuleType:
    """The package faiss.

    Raises:
        MissingPackageError: it isn't installed.
    """
    try:
        import faiss
    except ImportError:
        raise MissingPackageError(
            "engine 'faiss' needs a package that isn't installed: pip install faiss-cpu, or choose "
            "engine 'numpy'"
        ) from None
    return faiss


def search_in_parts(
    search: Callable[[np.ndarray], Found],
    queries: np.ndarray,
    batch: int,
    most_at_once: int | None = None,
) -> Found:
    """Call ``search`` for all queries, in several threads.

    Args:
        search: from queries, uint8 (q, B), to distances and rows, (q, k) each.
        queries: uint8 (Q, B), at least one.
        batch: the most queries of a call.
        most_at_once: the most queries in work in all threads together; None for any number.

    Returns:
        Distances and rows, (Q, k) each.
    """
    threads = import_faiss().omp_get_max_threads()
    limit = len(queries) if most_at_once is None else most_at_once
    parts = max(1, min(threads, limit, len(queries) // _QUERIES_PER_THREAD))
    batch = max(1, min(batch, limit // parts))

    def search_part(part: np.ndarray) -> list[Found]:
        return [search(part[i : i + batch]) for i in range(0, len(part), batch)]

    if threads == 1:
        found = [search_part(queries)]
    else:
        found = list(workers(threads).map(search_part, np.array_split(queries, parts)))
    distances, rows = zip(*(pair for part in found for pair in part), strict=True)
    return np.concatenate(distances), np.concatenate(rows)


def openmp_threads() -> int:
    """As many as OpenMP may use: OMP_NUM_THREADS, or one for each core."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit.isdecimal() and int(limit):
        return int(limit)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def workers(threads: int) -> ThreadPoolExecutor:
    """So many threads, in each of which FAISS, if it is installed, uses no further ones."""
    return ThreadPoolExecutor(threads, thread_name_prefix="search", initializer=_use_one_thread)


def _use_one_thread() -> None:
    with suppress(MissingPackageError):
        import_faiss().omp_set_num_threads(1)


if hasattr(os, "register_at_fork"):  # the pool of a forked process has no threads
    os.register_at_fork(after_in_child=workers.cache_clear)
