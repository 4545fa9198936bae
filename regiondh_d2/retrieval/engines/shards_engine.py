"""Exact search in files that may be larger than memory: shards of codes, mapped and not read.

================= ================================================================================
``shards.json``   ``format`` "regiondh-shards", ``version`` 1, ``bits``, ``next_row``; ``shards``:
                  for each its ``file``, ``first_row`` and ``count``; ``removed``: the file of
                  removed rows, or ""
``codes-N.npy``   uint8 (count, width in words), the codes of a shard, as numpy writes arrays
``removed-N.npy`` int64 (R,), rows that were removed, ascending
================= ================================================================================

To add codes or remove rows, new files are written, and then ``shards.json`` is replaced in one
step; the files of earlier shards are not touched.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ...structures.packed import pad_columns
from ...utils.display import display_name
from ...utils.errors import RegionDHError
from ...utils.file_io import replace_when_complete, write_json
from ..hamming_index import HammingIndex, positive_integer
from ..index_file import IndexFileError
from .code_array import width_in_words
from .faiss_engine import FaissIndex
from .numpy_engine import NumpyIndex

__all__ = ["ShardedIndex"]

_FORMAT, _VERSION, _RECORD = "regiondh-shards", 1, "shards.json"
_NAME = re.compile(r"(codes|removed)-([0-9]{1,9})\.npy")
_QUERIES = 64  # of a task: enough to use a block of codes again while it is in the cache
_GROWTH = 4

Found = tuple[np.ndarray, np.ndarray]


class ShardedIndex(HammingIndex):
    """One index in many files, with the same answers as one index in memory.

    Shards are searched at the same time, by all cores, each by an engine for codes in memory; the
    system reads a file when it is searched and forgets it when memory is short. Answers are merged
    by (distance, row).

    Several processes may search a folder, one may write. A process keeps the state that it opened.

    Args:
        bits: code length.
        path: a folder; if it holds an index already, that is opened.
        shard_rows: the most codes of a file.
        threads: searches at the same time; by default OMP_NUM_THREADS, or one for each core.

    Raises:
        IndexFileError: the folder holds something else, or an index of another code length.
    """

    def __init__(
        self,
        bits: int,
        path: str | os.PathLike = "",
        shard_rows: int = 16_000_000,
        threads: int | None = None,
    ) -> None:
        super().__init__(bits)
        if not os.fspath(path):
            raise RegionDHError("engine 'shards' needs path, the folder of its files")
        self.path = Path(path)
        self.shard_rows = positive_integer("shard_rows", shard_rows)
        self.threads = _cores() if threads is None else positive_integer("threads", threads)
        self._padded_width = width_in_words(self.width)
        self._shards: list[_Shard] = []
        self._numbers = 0
        self._open()

    @property
    def codes(self) -> np.ndarray:
        """All codes held, uint8 (N, width), by ascending row, read into memory."""
        held = [shard.codes[shard.held(self._removed)] for shard in self._shards]
        return np.concatenate([np.empty((0, self._padded_width), np.uint8), *held])[:, : self.width]

    # ----------------------------------------------------------------------------------------------
    # Files

    def _open(self) -> None:
        record_path = self.path / _RECORD
        if not record_path.exists():
            names = os.listdir(self.path) if self.path.is_dir() else []
            if self.path.exists() and not self.path.is_dir():
                raise IndexFileError(f"{display_name(self.path)}: is a file; name a folder")
            strangers = [name for name in names if not _NAME.fullmatch(name.lstrip("."))]
            if strangers:
                raise IndexFileError(
                    f"{display_name(self.path)}: holds files but no {_RECORD}; name another folder"
                )
            return
        record = _read_record(record_path)
        if record["bits"] != self.bits:
            raise IndexFileError(
                f"{display_name(record_path)}: is of codes of {record['bits']} bits, this index "
                f"of {self.bits}; create it with bits={record['bits']}"
            )
        for part in record["shards"]:
            self._attach(part["file"], part["first_row"], part["count"])
        self._next_row = record["next_row"]
        if record["removed"]:
            self._removed = self._map(record["removed"], (None,), np.int64)[:].copy()
        self._numbers = max(
            [0, *(int(m[2]) for m in map(_NAME.fullmatch, os.listdir(self.path)) if m)]
        )

    def _attach(self, name: str, first_row: int, count: int) -> None:
        codes = self._map(name, (count, self._padded_width), np.uint8)
        self._shards.append(_Shard(name, first_row, codes, self.bits))

    def _map(self, name: str, shape: tuple[int | None, ...], dtype: type) -> np.ndarray:
        path = self.path / name
        try:
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise IndexFileError(
                f"{display_name(path)}: missing or damaged ({error}); build the index again"
            ) from None
        fits = len(shape) == values.ndim and all(
            wanted in (None, given) for wanted, given in zip(shape, values.shape, strict=True)
        )
        if values.dtype != dtype or not fits:
            raise IndexFileError(
                f"{display_name(path)}: holds {values.dtype} of shape {values.shape}, and "
                f"{_RECORD} names another; build the index again"
            )
        return np.asarray(values)  # FAISS takes no np.memmap

    def _write_array(self, kind: str, values: np.ndarray) -> str:
        self._numbers += 1
        name = f"{kind}-{self._numbers}.npy"
        with replace_when_complete(self.path / name) as temporary, open(temporary, "wb") as file:
            np.lib.format.write_array(file, values, allow_pickle=False)
        return name

    def _write_record(self) -> None:
        removed = self._write_array("removed", self._removed) if len(self._removed) else ""
        parts = [
            {"file": shard.name, "first_row": shard.first_row, "count": len(shard.codes)}
            for shard in self._shards
        ]
        record = {"format": _FORMAT, "version": _VERSION, "bits": self.bits}
        record |= {"shards": parts, "next_row": self._next_row, "removed": removed}
        write_json(self.path / _RECORD, record)
        used = {removed, *(shard.name for shard in self._shards)}
        for name in os.listdir(self.path):
            if _NAME.fullmatch(name) and name not in used:
                (self.path / name).unlink(missing_ok=True)

    # ----------------------------------------------------------------------------------------------
    # Adding and removing

    def add(self, codes: np.ndarray) -> np.ndarray:
        """As :meth:`HammingIndex.add`: the codes become new shards on disk."""
        rows = super().add(codes)
        if len(rows):
            self._write_record()
        return rows

    def remove(self, rows: np.ndarray) -> None:
        """As :meth:`HammingIndex.remove`; the shards keep the codes, but no search finds them."""
        super().remove(rows)
        self._write_record()

    def load(self, path: str | os.PathLike) -> None:
        super().load(path)
        self._write_record()

    def _add(self, codes: np.ndarray, rows: np.ndarray) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        # Rows with gaps come from an index file: a removed code is then stored as zeros.
        last = self._shards[-1] if self._shards else None
        first = 0 if last is None else last.first_row + len(last.codes)
        count = int(rows[-1]) + 1 - first
        for begin in range(0, count, self.shard_rows):
            end = min(begin + self.shard_rows, count)
            taken = slice(*np.searchsorted(rows, (first + begin, first + end)))
            padded = pad_columns(codes[taken], self._padded_width)
            if len(padded) != end - begin:
                spread = np.zeros((end - begin, self._padded_width), np.uint8)
                spread[rows[taken] - first - begin] = padded
                padded = spread
            name = self._write_array("codes", padded)
            self._attach(name, first + begin, end - begin)

    def _remove(self, rows: np.ndarray) -> None:
        """Nothing: a search leaves removed rows out, and :meth:`remove` records them."""

    def _clear(self, arrays: dict[str, np.ndarray]) -> None:
        self._shards = []

    # ----------------------------------------------------------------------------------------------
    # Searching

    def _search(self, codes: np.ndarray, k: int) -> Found:
        queries = pad_columns(codes, self._padded_width)
        parts = np.array_split(queries, -(-len(queries) // _QUERIES))
        tasks: list[Callable[[], Found]] = [
            functools.partial(shard.nearest, part, k, self._removed)
            for part in parts
            for shard in self._shards
        ]
        if self.threads == 1 or len(tasks) == 1:
            found = [task() for task in tasks]
        else:
            found = list(_workers(self.threads).map(lambda task: task(), tasks))
        step = len(self._shards)
        merged = [_merge(found[i : i + step], k) for i in range(0, len(found), step)]
        distances, rows = zip(*merged, strict=True)
        return np.concatenate(distances), np.concatenate(rows)


class _Shard:
    """A file of codes. ``codes`` are mapped, uint8 (count, width in words)."""

    def __init__(self, name: str, first_row: int, codes: np.ndarray, bits: int) -> None:
        self.name, self.first_row, self.codes = name, first_row, codes
        self._bits = bits

    @functools.cached_property
    def _index(self) -> FaissIndex | NumpyIndex:
        try:
            index: FaissIndex | NumpyIndex = FaissIndex(self._bits)
        except ImportError:
            index = NumpyIndex(self._bits)
        index.hold(self.codes)
        return index

    def removed(self, removed: np.ndarray) -> np.ndarray:
        """Which of the removed rows are of this shard: positions in it, ascending."""
        begin, end = np.searchsorted(removed, (self.first_row, self.first_row + len(self.codes)))
        return removed[begin:end] - self.first_row

    def held(self, removed: np.ndarray) -> np.ndarray:
        """Positions of the other rows."""
        held = np.ones(len(self.codes), bool)
        held[self.removed(removed)] = False
        return np.flatnonzero(held)

    def nearest(self, queries: np.ndarray, k: int, removed: np.ndarray) -> Found:
        """The k nearest rows, or fewer if there are no more, by (distance, row)."""
        gone = self.removed(removed)
        wanted = min(k, len(self.codes) - len(gone))
        if not wanted:
            shape = (len(queries), 0)
            return np.empty(shape, np.int32), np.empty(shape, np.int64)
        asked = min(len(self.codes), wanted + min(len(gone), wanted))
        while True:
            distances, positions = self._index.nearest_padded(queries, asked)
            if not len(gone):
                return distances, positions + self.first_row
            kept = np.isin(positions, gone, invert=True)
            if kept.sum(axis=1).min() >= wanted:
                break
            asked = min(len(self.codes), _GROWTH * asked)
        # The first ``wanted`` of each line that are kept, in their order.
        order = np.argsort(~kept, axis=1, kind="stable")[:, :wanted]
        return (
            np.take_along_axis(distances, order, 1),
            np.take_along_axis(positions, order, 1) + self.first_row,
        )


def _merge(found: list[Found], k: int) -> Found:
    """The first k of all shards: their rows ascend, so a stable sort by distance is enough."""
    distances = np.concatenate([pair[0] for pair in found], axis=1)
    rows = np.concatenate([pair[1] for pair in found], axis=1)
    if len(found) == 1:
        return distances[:, :k], rows[:, :k]
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, 1), np.take_along_axis(rows, order, 1)


def _read_record(path: Path) -> dict[str, Any]:
    name = display_name(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise IndexFileError(f"{name}: not readable ({error}); build the index again") from None
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise IndexFileError(f"{name}: not of format {_FORMAT!r}; name another folder")
    if record.get("version") != _VERSION:
        raise IndexFileError(f"{name}: version {record.get('version')}; update regiondh_d2")
    if not _is_consistent(record):
        raise IndexFileError(f"{name}: its values are wrong; build the index again")
    return record


def _is_consistent(record: Mapping[str, Any]) -> bool:
    """Whether the record's values have the right types, and name no file elsewhere."""
    try:
        end = 0
        for part in record["shards"]:
            match = _NAME.fullmatch(part["file"])
            if match is None or match[1] != "codes" or part["first_row"] != end:
                return False
            end += positive_integer("count", part["count"])
        is_named = not record["removed"] or _NAME.fullmatch(record["removed"])
        return bool(is_named) and record["next_row"] >= end and record["bits"] >= 1
    except (KeyError, TypeError, ValueError):
        return False


def _cores() -> int:
    """As many as OpenMP may use."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit.isdecimal() and int(limit):
        return int(limit)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def _workers(threads: int) -> ThreadPoolExecutor:
    try:
        import faiss

        one_thread = functools.partial(faiss.omp_set_num_threads, 1)
    except ImportError:
        return ThreadPoolExecutor(threads, thread_name_prefix="shards")
    return ThreadPoolExecutor(threads, thread_name_prefix="shards", initializer=one_thread)


if hasattr(os, "register_at_fork"):  # the pool of a forked process has no threads
    os.register_at_fork(after_in_child=_workers.cache_clear)
