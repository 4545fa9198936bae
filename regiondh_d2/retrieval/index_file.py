"""Index files: npz archives of an index's contents, readable by every engine.

============= ============================== ===============================================
``bits``      int64 ()
``codes``     uint8 (N, ceil(bits / 8))      codes in the index, by ascending row
``removed``   int64 (R,)                     rows that were removed; with the rows of
                                             ``codes`` they are 0 ... N + R - 1
``centroids`` uint8 (nlist, padded width)    of an approximate index only: its lists
============= ============================== ===============================================

Version 1 of index folders has such files; version 2 has the codes in its code file and, for an
approximate index, a file with only ``bits`` and ``centroids``. FAISS's own files could be read only
by FAISS, and have no checksums: a damaged byte would change answers unnoticed.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.errors import RegionDHError
from ..utils.file_io import replace_when_complete
from ..utils.locks import refuse_if_busy
from ..utils.shortage import refuse_if_short

__all__ = ["IndexFileError", "read_arrays", "rows_of_file", "write_arrays"]

# Raised by numpy and zipfile for damaged files.
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
    """An index cannot be read or written. The message is one line that names the file and the
    fix."""


def write_arrays(path: str | os.PathLike, **arrays: np.ndarray | np.integer) -> None:
    """Write an archive: complete, or absent (an older file of that name stays)."""
    columns: dict[str, Any] = dict(arrays)  # none has the name of an option of savez
    with replace_when_complete(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **columns)


def read_arrays(path: str | os.PathLike, names: Sequence[str]) -> dict[str, np.ndarray]:
    """All arrays of an archive, ``names`` among them.

    Raises:
        IndexFileError: no such file, damaged, or one of ``names`` is missing.
        FileInUseError: another program has locked the file.
    """
    path = Path(path)
    if not path.is_file():
        raise IndexFileError(f"{path}: no such file; build the index with `regiondh build-index`")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
    except _DAMAGE as error:
        refuse_if_busy(path, error)
        refuse_if_short(error, memory=False)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise IndexFileError(
            f"{path}: not a readable index file, damaged or incomplete ({reason}); build the index "
            "again"
        ) from error
    absent = [name for name in names if name not in arrays]
    if absent:
        raise IndexFileError(f"{path}: {absent[0]} is missing; build the index again")
    return arrays


def rows_of_file(path: str | os.PathLike, count: int, removed: np.ndarray) -> np.ndarray:
    """The rows of a file's codes, int64 (N,), ascending.

    Args:
        path: the file, for messages.
        count: N, how many codes it holds.
        removed: its array of that name.

    Raises:
        IndexFileError: ``removed`` is not a list of distinct rows below N + R.
    """
    total = count + removed.size
    held = np.ones(total, bool)
    if removed.dtype == np.int64 and ((removed >= 0) & (removed < total)).all():
        held[removed] = False
    rows = np.flatnonzero(held)
    if len(rows) != count:
        raise IndexFileError(
            f"{path}: removed is not a list of rows below {total}; build the index again"
        )
    return rows
