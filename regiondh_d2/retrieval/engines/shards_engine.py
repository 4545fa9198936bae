"""Exact search in files that may be larger than memory: shards of codes, mapped and not read.

================= ================================================================================
``shards.json``   ``format`` "regiondh-shards", ``version`` 1, ``bits``, ``next_row``; ``shards``:
                  for each its ``file``, ``first_row`` and ``count``; ``removed``: the file of
                  removed rows, or ""
``codes-N.npy``   uint8 (count, width in words), the codes of a shard, as numpy writes arrays
``removed-N.npy`` int64 (R,), rows that were removed, ascending
================= ================================================================================

To add codes or remove rows, new files are written, and then ``shards.json`` is replaced in one
step; the files of earlier shards are not touched. Meanwhile the file ``.lock`` is locked. A process
whose index isn't that of ``shards.json`` any more writes nothing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.display import display_name
from ...utils.errors import RegionDHError
from ...utils.file_io import replace_when_complete, write_json
from ...utils.locks import hold_lock
from ...utils.shortage import refuse_if_short
from ...utils.temporaries import is_temporary
from ..hamming_index import positive_integer
from ..index_file import IndexFileError
from .shard_search import ShardArrays

__all__ = ["SHARD_ROWS", "ShardedIndex", "map_array", "write_array"]

SHARD_ROWS = 16_000_000
"""The most codes of a file, if nothing else is asked for: 128 MB of 64 bits."""

_FORMAT, _VERSION, _RECORD, _LOCK = "regiondh-shards", 1, "shards.json", ".lock"
_NAME = re.compile(r"(codes|removed)-([0-9]{1,9})\.npy")


class ShardedIndex(ShardArrays):
    """One index in many files, with the same answers as one index in memory.

    The system reads a file when it is searched and forgets it when memory is short.

    Several processes may search a folder, and one may write. A process keeps the state that it
    opened. Two that write in turn must open the index again before they do.

    Args:
        bits: code length.
        path: a folder; if it holds an index already, that is opened.
        shard_rows: the most codes of a file.
        threads: searches at the same time; by default OMP_NUM_THREADS, or one for each core.

    Raises:
        IndexFileError: the folder holds something else, or an index of another code length. From
            :meth:`add`, :meth:`remove` and :meth:`load`: another process has written there since.
        FileInUseError: from these methods, another process is writing.
    """

    def __init__(
        self,
        bits: int,
        path: str | os.PathLike = "",
        shard_rows: int = SHARD_ROWS,
        threads: int | None = None,
    ) -> None:
        super().__init__(bits, threads)
        if not os.fspath(path):
            raise RegionDHError("engine 'shards' needs path, the folder of its files")
        self.path = Path(path)
        self.shard_rows = positive_integer("shard_rows", shard_rows)
        self._files: list[str] = []  # of the shards
        self._numbers = 0
        self._record: dict[str, Any] | None = None  # as it was read or written last
        self._open()

    # ----------------------------------------------------------------------------------------------
    # Files

    def _open(self) -> None:
        record_path = self.path / _RECORD
        if not record_path.exists():
            names = os.listdir(self.path) if self.path.is_dir() else []
            if self.path.exists() and not self.path.is_dir():
                raise IndexFileError(f"{display_name(self.path)}: is a file; name a folder")
            own = [x for x in names if _NAME.fullmatch(x) or is_temporary(x) or x == _LOCK]
            strangers = set(names).difference(own)
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
            self.attach(self._map(part["file"], (part["count"], self._padded_width), np.uint8))
            self._files.append(part["file"])
        self._record, self._next_row = record, record["next_row"]
        if record["removed"]:
            self._removed = self._map(record["removed"], (None,), np.int64)[:].copy()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Keeps others from writing meanwhile. If the block fails, nothing has changed."""
        before = list(self._shards), list(self._files), self._next_row, self._removed
        self.path.mkdir(parents=True, exist_ok=True)
        with hold_lock(self.path / _LOCK, self.path):
            record_path = self.path / _RECORD
            now = _read_record(record_path) if record_path.exists() else None
            if now != self._record:
                raise IndexFileError(
                    f"{display_name(self.path)}: was written by another process since it was "
                    "opened: open it again, then write"
                )
            names = map(_NAME.fullmatch, os.listdir(self.path))
            self._numbers = max([0, *(int(match[2]) for match in names if match)])
            try:
                yield
            except BaseException:
                if self._record == now:
                    self._shards, self._files, self._next_row, self._removed = before
                raise

    def _map(self, name: str, shape: tuple[int | None, ...], dtype: type) -> np.ndarray:
        return map_array(self.path / name, shape, dtype, _RECORD)

    def _write_array(self, kind: str, values: np.ndarray) -> str:
        self._numbers += 1
        name = f"{kind}-{self._numbers}.npy"
        write_array(self.path / name, values)
        return name

    def _write_record(self) -> None:
        removed = self._write_array("removed", self._removed) if len(self._removed) else ""
        ends = np.cumsum([len(shard) for shard in self._shards], dtype=int).tolist()
        parts = [
            {"file": name, "first_row": end - len(shard), "count": len(shard)}
            for name, shard, end in zip(self._files, self._shards, ends, strict=True)
        ]
        record = {"format": _FORMAT, "version": _VERSION, "bits": self.bits}
        record |= {"shards": parts, "next_row": self._next_row, "removed": removed}
        write_json(self.path / _RECORD, record)
        self._record = record
        used = {removed, *self._files}
        for name in os.listdir(self.path):
            if _NAME.fullmatch(name) and name not in used:
                with suppress(OSError):  # the next writer removes it
                    (self.path / name).unlink()

    # ----------------------------------------------------------------------------------------------
    # Adding and removing

    def add(self, codes: np.ndarray) -> np.ndarray:
        """As :meth:`HammingIndex.add`: the codes become new shards on disk."""
        with self._writing():
            rows = super().add(codes)
            if len(rows):
                self._write_record()
        return rows

    def remove(self, rows: np.ndarray) -> None:
        """As :meth:`HammingIndex.remove`; the shards keep the codes, but no search finds them."""
        with self._writing():
            super().remove(rows)
            self._write_record()

    def load(self, path: str | os.PathLike) -> None:
        with self._writing():
            super().load(path)
            self._write_record()

    def _add(self, codes: np.ndarray, rows: np.ndarray) -> None:
        padded = self._shard_of(codes, rows)
        parts = [
            padded[begin : begin + self.shard_rows]
            for begin in range(0, len(padded), self.shard_rows)
        ]
        files = [self._write_array("codes", part) for part in parts]
        for name, part in zip(files, parts, strict=True):
            self._shards.append(self._map(name, part.shape, np.uint8))
        self._files += files

    def _clear(self, arrays: dict[str, np.ndarray]) -> None:
        super()._clear(arrays)
        self._files = []


def write_array(path: Path, values: np.ndarray) -> None:
    """Write a file of one array: complete, or absent (an older file of that name stays)."""
    values = np.ascontiguousarray(values)
    with replace_when_complete(path) as temporary, open(temporary, "wb") as file:
        # Not by write_array, which loses the end without an error where the disk becomes full.
        header = np.lib.format.header_data_from_array_1_0(values)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(values.data)


def map_array(path: Path, shape: tuple[int | None, ...], dtype: type, named_by: str) -> np.ndarray:
    """The array of a file that :func:`write_array` wrote, mapped and not read.

    Args:
        path: the file.
        shape: what the shape must be; None for any length.
        dtype: what the type must be.
        named_by: the file that tells them, for the message.

    Raises:
        IndexFileError: the file is missing or damaged, or holds something else.
    """
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        refuse_if_short(error)
        raise IndexFileError(
            f"{display_name(path)}: missing or damaged ({_one_line(error)}); build the index again"
        ) from None
    fits = len(shape) == values.ndim and all(
        wanted in (None, given) for wanted, given in zip(shape, values.shape, strict=True)
    )
    if values.dtype != dtype or not fits or not values.flags.c_contiguous:
        raise IndexFileError(
            f"{display_name(path)}: holds {values.dtype} of shape {values.shape}, and {named_by} "
            "names another; build the index again"
        )
    return np.asarray(values)  # FAISS takes no np.memmap


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _read_record(path: Path) -> dict[str, Any]:
    name = display_name(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        refuse_if_short(error)
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
