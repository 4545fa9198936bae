"""Exact search by Hamming distance: one interface, in the process, over FAISS or numpy.

Codes are uint8 (N, ceil(bits / 8)), as in :mod:`~regiondh_d2.structures.packed`. Results are
ordered by (distance, row) whatever the engine, so equal distances never make two runs differ.

An index file is an npz archive that any engine reads. Index folders hold the codes once, in their
code file, and beside it of an IVF index ``bits`` and ``centroids`` alone:

============= ============================== ===============================================
``bits``      int64 ()
``codes``     uint8 (N, ceil(bits / 8))      codes in the index, by ascending row
``removed``   int64 (R,)                     rows that were removed; with the rows of
                                             ``codes`` they are 0 ... N + R - 1
``centroids`` uint8 (nlist, padded width)    of an IVF index only
============= ============================== ===============================================
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np

from ..structures.packed import check_packed, packed_width, pad_columns, to_words
from ..utils.errors import MissingPackageError, RegionDHError
from ..utils.file_io import replace_when_complete
from ..utils.locks import refuse_if_busy

__all__ = [
    "ENGINES",
    "FaissIVFIndex",
    "FaissIndex",
    "HammingIndex",
    "IndexFileError",
    "NumpyIndex",
    "create_index",
    "self_recall",
]

_BLOCK = 1 << 16  # rows whose distances numpy computes at once: 512 KB a word stay in the cache

# FAISS selects the nearest by counting or with a heap; counting is up to seven times faster where a
# good part of the codes is asked for, and slower than the heap on many codes or for few of them.
_COUNTING_ROWS = 1_000_000
_COUNTING_SHARE = 1e-4  # of the codes
# But it keeps k rows for every possible distance and query, so this caps a batch of queries.
_COUNTING_BYTES = 256 << 20
_FAISS_BATCH = 32  # queries that FAISS itself takes at once
# FAISS divides the queries, and its threads wait for each other after every block of codes. With
# few queries a thread the waiting costs more than it gains: up to 170 times on a busy machine.
_QUERIES_PER_THREAD = 4
# What numpy and zipfile raise for bytes that are not as written.
_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class IndexFileError(RegionDHError):
    """An index that cannot be read or written; one line with the file and the fix."""


def create_index(bits: int, engine: str = "faiss", **options: int) -> HammingIndex:
    """An empty index.

    Args:
        bits: code length.
        engine: "faiss" (needs the package faiss-cpu) or "numpy", a key of :data:`ENGINES`. Both are
            exact and give the same answers.
        options: for "faiss", ``nlist`` and ``nprobe`` make a :class:`FaissIVFIndex`, which is
            approximate.

    Raises:
        ImportError: the engine's package isn't installed.
        ValueError: wrong bits, engine or options.
    """
    if engine not in ENGINES:
        raise RegionDHError(f"engine {engine!r} is not known: use {' or '.join(ENGINES)}")
    if not options:
        return ENGINES[engine](bits)
    if engine != "faiss" or "nlist" not in options or not options.keys() <= {"nlist", "nprobe"}:
        raise RegionDHError(
            f"engine {engine!r} does not take {', '.join(sorted(options))}: only 'faiss' has "
            "options, nlist and with it nprobe"
        )
    return FaissIVFIndex(bits, **options)


class HammingIndex(ABC):
    """Codes numbered by row: the first one added is row 0, and a row keeps its number for ever.

    Engines hold the codes by position and implement the methods below the public ones; this class
    numbers, checks, saves and loads.

    Attributes:
        bits: code length.
        width: bytes of a code, ceil(bits / 8).
        exact: whether :meth:`search` finds the nearest codes without fail.
    """

    exact = True

    def __init__(self, bits: int) -> None:
        self.bits = _positive("bits", bits)
        self.width = packed_width(self.bits)
        self._rows = np.empty(0, np.int64)  # of the codes held, ascending
        self._next_row = 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def next_row(self) -> int:
        """The row that the next code will have: how many codes were ever added."""
        return self._next_row

    def add(self, codes: np.ndarray) -> np.ndarray:
        """Append uint8 (N, width) codes.

        Returns:
            Their rows, int64 (N,). Rows of removed codes are not given again.

        Raises:
            ValueError: the codes are of another type or width, or have bits set beyond ``bits``.
        """
        codes = check_packed("codes", codes, self.bits)
        rows = np.arange(self._next_row, self._next_row + len(codes), dtype=np.int64)
        if len(codes):
            self._append(codes)
        self._rows = np.concatenate([self._rows, rows])
        self._next_row += len(codes)
        return rows

    def holds(self, rows: np.ndarray) -> np.ndarray:
        """Whether the index holds the codes of these rows, int (R,): bool (R,)."""
        places = np.searchsorted(self._rows, rows)
        found = np.zeros(len(rows), bool)
        inside = places < len(self._rows)
        found[inside] = self._rows[places[inside]] == rows[inside]
        return found

    def remove(self, rows: np.ndarray) -> None:
        """Forget the codes of these rows, int (R,); all other rows keep their numbers.

        Raises:
            ValueError: a row is not in the index; nothing is removed then.
        """
        rows = np.unique(rows)
        if len(rows) and rows.dtype.kind not in "iu":
            raise RegionDHError(f"rows must be integers, not {rows.dtype}")
        absent = np.setdiff1d(rows, self._rows, assume_unique=True)
        if len(absent):
            raise RegionDHError(f"row {absent[0]} is not in the index: removed or never added")
        kept = np.isin(self._rows, rows, assume_unique=True, invert=True)
        self._fill(self._codes()[kept], self._rows[kept])

    def search(self, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest codes of each query, ordered by (distance, row).

        Args:
            codes: uint8 (Q, width) queries.
            k: how many. A larger k than there are codes gives all of them, without padding.

        Returns:
            Distances, int32, and rows, int64, each (Q, min(k, len(index))).

        Raises:
            ValueError: the queries don't fit the index, or k isn't positive.
        """
        codes = check_packed("codes", codes, self.bits)
        k = min(_positive("k", k), len(self))
        if not len(codes) or not k:
            return np.empty((len(codes), k), np.int32), np.empty((len(codes), k), np.int64)
        distances, positions = self._search_positions(codes, k)
        if len(self) == self._next_row:  # nothing was removed, so positions are rows
            return distances, positions
        # An approximate index may have found fewer than k.
        return distances, np.where(positions < 0, -1, self._rows[positions])

    def save(self, path: str | os.PathLike) -> None:
        """Write an index file: complete, or absent (an older file of that name stays)."""
        removed = np.delete(np.arange(self._next_row, dtype=np.int64), self._rows)
        with replace_when_complete(path) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                bits=np.int64(self.bits),
                codes=self._codes(),
                removed=removed,
                **self._trained_arrays(),
            )

    @property
    def is_trained(self) -> bool:
        """Whether there is something beside the codes that a search needs: of IVF, its lists."""
        return bool(self._trained_arrays())

    def save_training(self, path: str | os.PathLike) -> None:
        """Write what was learned from the first codes, without any code; see :attr:`is_trained`."""
        with replace_when_complete(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, bits=np.int64(self.bits), **self._trained_arrays())

    def load_training(self, path: str | os.PathLike) -> None:
        """Start anew without codes, with what :meth:`save_training` wrote.

        Raises:
            IndexFileError: no such file, damaged, or of another kind of index.
        """
        arrays = _read_arrays(Path(path), ("bits",))
        if not np.array_equal(arrays["bits"], self.bits):
            raise IndexFileError(
                f"{path}: is of codes of {arrays['bits']} bits, this index {self.bits}; build the "
                "index again"
            )
        self._restore(arrays)
        if not self.is_trained:
            raise IndexFileError(f"{path}: holds no lists of this index; build the index again")

    def load(self, path: str | os.PathLike) -> None:
        """Replace the contents by those of a file, whichever engine wrote it.

        Raises:
            IndexFileError: no such file, damaged, inconsistent, or codes of another length; the
                index is as before then.
            ValueError: too few codes to train an IVF index; it is empty then.
        """
        arrays = _read_arrays(Path(path), ("bits", "codes", "removed"))
        if not np.array_equal(arrays["bits"], self.bits):
            raise IndexFileError(
                f"{path}: holds codes of {arrays['bits']} bits, this index {self.bits}; create it "
                f"with bits={arrays['bits']}"
            )
        try:
            codes = check_packed("codes", arrays["codes"], self.bits)
        except ValueError as error:
            raise IndexFileError(f"{path}: {error}; build the index again") from None
        removed = arrays["removed"]
        total = len(codes) + removed.size
        held = np.ones(total, bool)
        if removed.dtype == np.int64 and ((removed >= 0) & (removed < total)).all():
            held[removed] = False
        rows = np.flatnonzero(held)
        if len(rows) != len(codes):
            raise IndexFileError(
                f"{path}: removed is not a list of rows below {total}; build the index again"
            )
        self._restore(arrays)
        self._fill(codes, rows)
        self._next_row = total

    def _fill(self, codes: np.ndarray, rows: np.ndarray) -> None:
        """Hold these codes, with these rows, in place of all others."""
        self._rows = rows[:0]
        self._clear()
        if len(codes):
            self._append(codes)
        self._rows = rows

    @abstractmethod
    def _append(self, codes: np.ndarray) -> None:
        """Hold further codes, uint8 (N, width)."""

    @abstractmethod
    def _clear(self) -> None:
        """Hold no codes."""

    @abstractmethod
    def _codes(self) -> np.ndarray:
        """All codes held, uint8 (N, width), in the order of their adding."""

    @abstractmethod
    def _search_positions(self, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`search`, with k in 1 ... len(self), but positions (-1 for none) for rows."""

    def _trained_arrays(self) -> dict[str, np.ndarray]:
        """What a file must hold beside the codes."""
        return {}

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:  # noqa: B027, few engines train
        """Take over trained arrays, if any, from a file."""


class NumpyIndex(HammingIndex):
    """Exact search without further packages, at about a quarter of the speed of FAISS."""

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self._clear()

    def _append(self, codes: np.ndarray) -> None:
        self._words = np.concatenate([self._words, _to_columns(codes)], axis=1)

    def _clear(self) -> None:
        self._words = _to_columns(np.empty((0, self.width), np.uint8))

    def _codes(self) -> np.ndarray:
        return np.ascontiguousarray(self._words.T).view(np.uint8)[:, : self.width]

    def _search_positions(self, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        found = np.empty((len(codes), k), np.int32), np.empty((len(codes), k), np.int64)
        for i, code in enumerate(to_words(codes)):
            found[0][i], found[1][i] = self._search_one(code, k)
        return found

    def _search_one(self, code: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Distances and positions, (k,) each, for one query, uint64 (words,)."""
        distances = np.zeros(len(self), np.min_scalar_type(self.bits))
        counts = np.zeros(self.bits + 1, np.int64)
        for begin in range(0, len(self), _BLOCK):
            block = distances[begin : begin + _BLOCK]
            for words, word in zip(self._words, code, strict=True):
                block += np.bitwise_count(words[begin : begin + _BLOCK] ^ word)
            counts += np.bincount(block, minlength=len(counts))
        # Only codes up to the distance of the k-th nearest are worth sorting.
        farthest = np.searchsorted(np.cumsum(counts), k)
        near = np.flatnonzero(distances <= farthest)
        positions = near[np.argsort(distances[near], kind="stable")[:k]]
        return distances[positions], positions


class FaissIndex(HammingIndex):
    """Exact search by FAISS's ``IndexBinaryFlat``.

    FAISS finds equal distances in the order of their adding, with either way of selection. It
    doesn't promise that, so a test holds it to it.
    """

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self._faiss = _import_faiss()
        # FAISS is twice as fast on whole words; the zeros change no distance.
        self._padded_width = 4 if self.width <= 4 else -(-self.width // 8) * 8
        self._index = self._faiss.IndexBinaryFlat(8 * self._padded_width)

    def _append(self, codes: np.ndarray) -> None:
        self._index.add(pad_columns(codes, self._padded_width))

    def _clear(self) -> None:
        self._index.reset()

    def _codes(self) -> np.ndarray:
        return self._index.reconstruct_n(0, self._index.ntotal)[:, : self.width]

    def _search_positions(self, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        query_bytes = 8 * (self._index.d + 1) * k
        counting = (
            k > _COUNTING_SHARE * len(self)
            and len(self) <= _COUNTING_ROWS
            and query_bytes <= _COUNTING_BYTES
        )
        self._index.use_heap = not counting
        self._index.query_batch_size = min(_FAISS_BATCH, max(1, _COUNTING_BYTES // query_bytes))
        return self._search(codes, k)

    def _search(self, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        with self._threads_for(len(codes)):
            return self._index.search(pad_columns(codes, self._padded_width), k)

    @contextmanager
    def _threads_for(self, queries: int) -> Iterator[None]:
        threads = self._faiss.omp_get_max_threads()
        self._faiss.omp_set_num_threads(min(threads, max(1, queries // _QUERIES_PER_THREAD)))
        try:
            yield
        finally:
            self._faiss.omp_set_num_threads(threads)


class FaissIVFIndex(FaissIndex):
    """Approximate search by FAISS's ``IndexBinaryIVF``: only the codes of some lists are compared.

    The first codes added train the lists. How much is lost depends on the codes, clustered ones
    lose little and evenly spread ones most: measure it with :func:`self_recall`. A query whose
    lists hold fewer than k codes is filled up, as FAISS does, with row -1 and distance 2147483647.

    Args:
        bits: code length.
        nlist: number of lists; about the square root of the number of codes is usual.
        nprobe: lists compared with a query, at most ``nlist`` (and ``nlist`` if that is smaller
            than the default).
    """

    exact = False

    def __init__(self, bits: int, nlist: int, nprobe: int | None = None) -> None:
        super().__init__(bits)
        self.nlist = _positive("nlist", nlist)
        self.nprobe = min(16, self.nlist) if nprobe is None else _positive("nprobe", nprobe)
        if self.nprobe > self.nlist:
            raise RegionDHError(f"nprobe {self.nprobe} is above nlist {self.nlist}")
        self._start()

    def _start(self, centroids: np.ndarray | None = None) -> None:
        """An empty index, trained if the centroids, uint8 (nlist, padded width), are given."""
        self._quantizer = self._faiss.IndexBinaryFlat(8 * self._padded_width)
        self._index = self._faiss.IndexBinaryIVF(
            self._quantizer, 8 * self._padded_width, self.nlist
        )
        self._index.nprobe = self.nprobe
        if centroids is not None:
            self._quantizer.add(centroids)
            self._index.is_trained = True

    def _append(self, codes: np.ndarray) -> None:
        if not self._index.is_trained:
            if len(codes) < self.nlist:
                raise RegionDHError(
                    f"nlist {self.nlist} needs at least as many codes in the first add, not "
                    f"{len(codes)}: lower nlist or search exactly"
                )
            self._index.train(pad_columns(codes, self._padded_width))
        super()._append(codes)

    def _codes(self) -> np.ndarray:
        # Its reconstruct_n writes outside the array in FAISS 1.13 and older.
        from faiss.contrib.inspect_tools import get_invlist

        codes = np.empty((self._index.ntotal, self._padded_width), np.uint8)
        for i in range(self.nlist):
            positions, part = get_invlist(self._index.invlists, i)
            codes[positions] = part
        return codes[:, : self.width]

    def _search_positions(self, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        distances, positions = self._search(codes, k)
        order = np.lexsort((positions, distances))
        return np.take_along_axis(distances, order, 1), np.take_along_axis(positions, order, 1)

    def _trained_arrays(self) -> dict[str, np.ndarray]:
        if not self._index.is_trained:
            return {}
        return {"centroids": self._quantizer.reconstruct_n(0, self.nlist)}

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        centroids = arrays.get("centroids")
        fits = (
            centroids is not None
            and centroids.dtype == np.uint8
            and centroids.shape == (self.nlist, self._padded_width)
        )
        self._start(centroids if fits else None)  # otherwise the file's codes train


ENGINES: dict[str, type[HammingIndex]] = {"faiss": FaissIndex, "numpy": NumpyIndex}


def self_recall(index: HammingIndex, k: int = 100, samples: int = 200, seed: int = 0) -> float:
    """The share of a code's k nearest others that the index finds, 1 for an exact one.

    The mean over ``samples`` random codes of the index, searched exactly beside it. Of equally far
    codes any one will do.
    """
    codes = index._codes()
    k = min(_positive("k", k), len(codes) - 1)
    if k < 1:
        return 1.0
    rng = np.random.default_rng(seed)
    queries = codes[rng.choice(len(codes), min(samples, len(codes)), replace=False)]
    reference = NumpyIndex(index.bits)
    reference.add(codes)
    # Each query finds itself too, at distance 0.
    limit = reference.search(queries, k + 1)[0][:, -1:]
    found = (index.search(queries, k + 1)[0] <= limit).sum(axis=1) - 1
    return float(found.mean() / k)


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise RegionDHError(f"{name} must be a positive integer, not {value!r}")
    return int(value)


def _to_columns(codes: np.ndarray) -> np.ndarray:
    """uint8 (N, B) to uint64 (ceil(B / 8), N), so that the same word of all codes is contiguous."""
    return np.ascontiguousarray(to_words(codes).T)


def _import_faiss() -> ModuleType:
    try:
        import faiss
    except ImportError:
        raise MissingPackageError(
            "engine 'faiss' needs a package that isn't installed: pip install faiss-cpu, or choose "
            "engine 'numpy'"
        ) from None
    return faiss


def _read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of an npz archive, these among them."""
    if not path.is_file():
        raise IndexFileError(f"{path}: no such file; build the index with `regiondh build-index`")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
    except _DAMAGE as error:
        refuse_if_busy(path, error)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise IndexFileError(
            f"{path}: not a readable index file, damaged or incomplete ({reason}); build the index "
            "again"
        ) from error
    absent = [name for name in names if name not in arrays]
    if absent:
        raise IndexFileError(f"{path}: {absent[0]} is missing; build the index again")
    return arrays
