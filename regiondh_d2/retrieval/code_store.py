"""Binary codes in memory and on disk: one HDF5 layout for evaluation, indexing and search.

========================= ====================== ================================================
root attributes                                  ``format`` "regiondh-codes", ``version`` 2,
                                                 ``bits`` K, ``dataset``, ``config``,
                                                 ``settings``, ``class_names``,
                                                 ``count_difficult``, ``model_fingerprint``,
                                                 ``roots``: folders that paths count from
``codes``                 uint8 (N, ceil(K/8))   as ``numpy.packbits`` with bitorder "big"
``labels``                uint8 (N, C)           multi-hot; absent where unknown
``image_ids``             text column (N)
``relative_paths``        text column (N)        paths below the roots, "/" between folders
``root_index``            uint16 (N,)            which root
``size``                  int64 (N,)             bytes of the file when it was encoded, -1 unknown
``mtime_ns``              int64 (N,)             its time of modification then, -1 unknown
``content_sha256``        uint8 (N, 32)          optional; zeros where unknown
``thumbnails``            uint8 (N, 144)         optional; 12 x 12 grays, zeros where unknown
``activations``           float16 (N, K)         optional
``features``              float16 (N, D)         optional
``class_weights``         float32 (K + 1, C)     optional; a classifier on the bits, bias last
``positions``             int64 (N,)             in a shard: the image's place in the list of all;
                                                 such a file has the attribute ``shard``, too
``instances``             group                  optional; attribute ``bits`` K1
``instances/codes``       uint8 (M, ceil(K1/8))  one row a detection
``instances/image_index`` int64 (M,)             row of ``codes``
``instances/boxes``       float32 (M, 4)         XYXY, pixels of the original image
``instances/scores``      float32 (M,)
``instances/classes``     int64 (M,)
========================= ====================== ================================================

A text column is a group of ``bytes``, uint8 (L,), and ``offsets``, int64 (N + 1,): text i is the
bytes from offset i to offset i + 1, as ``os.fsencode`` gives them. So any file name fits, and a
long name doesn't make the others longer. Other columns and attributes are ignored.

Version 1 had ``file_names`` instead of roots, paths, sizes and times, and text of fixed length. It
is read as names below the root "", with unknown sizes and times.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..structures.code_checks import check_code_set
from ..structures.codes import CodeFileError, CodeSet, InstanceCodes, join_path
from ..utils.display import display_name
from ..utils.errors import RegionDHError
from ..utils.file_io import replace_when_complete
from ..utils.locks import FileInUseError, refuse_if_busy
from ..utils.shortage import refuse_if_short

__all__ = [
    "ARRAYS",
    "INSTANCE_ARRAYS",
    "TEXT_ATTRIBUTES",
    "read_codes",
    "split_texts",
    "write_codes",
]

FORMAT = "regiondh-codes"
VERSION = 2

_MAX_COMPRESSION = 1040  # deflate cannot shrink data further than about 1,032 to 1
TEXT_ATTRIBUTES = ("dataset", "config", "model_fingerprint", "settings", "shard")
_NOT_IN_ALL = ("settings", "shard")  # texts that a file may lack
# Columns of numbers: the kinds of types that are read, the type that is written, whether optional.
ARRAYS = {
    "codes": ("u", "u1", False),
    "root_index": ("iu", "u2", False),
    "size": ("iu", "i8", False),
    "mtime_ns": ("iu", "i8", False),
    "labels": ("u", "u1", True),
    "content_sha256": ("u", "u1", True),
    "thumbnails": ("u", "u1", True),
    "activations": ("f", "f2", True),
    "features": ("f", "f2", True),
    "class_weights": ("f", "f4", True),
    "positions": ("i", "i8", True),
}
INSTANCE_ARRAYS = {
    "codes": ("u", "u1"),
    "image_index": ("iu", "i8"),
    "boxes": ("f", "f4"),
    "scores": ("f", "f4"),
    "classes": ("iu", "i8"),
}
_NEW_IN_2 = ("root_index", "size", "mtime_ns")


def write_codes(path: str | os.PathLike, code_set: CodeSet) -> None:
    """Writes a code file: complete, or absent (an older file of that name stays).

    Raises:
        CodeFileError: the code set's arrays do not fit together.
        OSError: the file cannot be written, for instance because the disk is full.
    """
    try:
        check_code_set(code_set)
        image = _file_image(code_set)
    except RegionDHError as error:
        raise CodeFileError(f"{display_name(path)}: not written, {error}") from None
    with replace_when_complete(path) as temporary:
        temporary.write_bytes(image)


def _file_image(code_set: CodeSet) -> bytes:
    """The bytes of a code file, made in memory: on a full disk HDF5 would crash the process."""

    def fixed_length(values: Sequence[str]) -> np.ndarray:
        """Text of variable length is avoided: HDF5 crashes on damaged references to it."""
        encoded = [_encode(value) for value in values]
        length = max(map(len, encoded), default=0) or 1
        return np.array(encoded, dtype=h5py.string_dtype("utf-8", length))

    # Since HDF5 1.10 headers carry checksums: damage is then an error, not a crash of the library.
    with h5py.File(
        "codes.h5", "w", libver=("v110", "v110"), driver="core", backing_store=False
    ) as file:
        for name, value in {
            "format": FORMAT,
            **{name: getattr(code_set, name) for name in TEXT_ATTRIBUTES if name != "shard"},
        }.items():
            text = fixed_length([value])
            file.attrs.create(name, text[0], dtype=text.dtype)
        if code_set.shard:
            text = fixed_length([code_set.shard])
            file.attrs.create("shard", text[0], dtype=text.dtype)
        for name in ("class_names", "roots"):
            text = fixed_length(getattr(code_set, name))
            file.attrs.create(name, text, dtype=text.dtype)
        file.attrs["version"] = VERSION
        file.attrs["bits"] = int(code_set.bits)
        file.attrs["count_difficult"] = bool(code_set.count_difficult)
        for name in ("image_ids", "relative_paths"):
            _write_text_column(file.create_group(name), getattr(code_set, name))
        for name, (_, dtype, _) in ARRAYS.items():
            values = getattr(code_set, name)
            if values is not None:
                file[name] = np.asarray(values, dtype)
        found = code_set.instances
        if found is not None:
            group = file.create_group("instances")
            group.attrs["bits"] = int(found.bits)
            for name, (_, dtype) in INSTANCE_ARRAYS.items():
                group[name] = np.asarray(getattr(found, name), dtype)
        file.flush()
        return file.id.get_file_image()


def _encode(text: str) -> bytes:
    try:
        encoded = os.fsencode(str(text))
    except UnicodeEncodeError as error:
        raise CodeFileError(f"{display_name(text)} cannot be stored ({error.reason})") from None
    if b"\0" in encoded:  # no file name has one, and the reader takes it for damage
        raise CodeFileError(f"{display_name(text)} cannot be stored (it holds a zero byte)")
    return encoded


def _write_text_column(group: h5py.Group, values: Sequence[str]) -> None:
    encoded = [_encode(value) for value in values]
    group["bytes"] = np.frombuffer(b"".join(encoded), np.uint8)
    group["offsets"] = np.cumsum([0, *map(len, encoded)], dtype=np.int64)


def read_codes(path: str | os.PathLike) -> CodeSet:
    """Read and check a code file of this or an older version.

    The file may come from a stranger: only plain datasets of this layout are read, and no more
    memory is allocated than the file's bytes can fill.

    Raises:
        CodeFileError: missing, not HDF5, damaged, another format or version, or inconsistent.
        FileInUseError: another program may be writing it.
        ShortageError: the machine lacks memory or open files.
        OSError: the file cannot be opened, for instance because it belongs to somebody else.
    """
    path = Path(path)
    shown = display_name(path)
    if path.is_dir():
        raise CodeFileError(f"{shown}: is a folder; name a code file in it")
    if not path.is_file():
        raise CodeFileError(f"{shown}: no such file; write it with `regiondh extract-codes`")
    with open(path, "rb") as file:  # HDF5 would call a file without permission damaged
        length = os.fstat(file.fileno()).st_size
    try:
        with h5py.File(path, "r") as file:
            code_set = _Reader(file, length).code_set()
        check_code_set(code_set)
    except _NewerVersionError as error:
        raise CodeFileError(f"{shown}: {error}; update regiondh_d2") from None
    except ValueError as error:  # RegionDHError is one
        raise CodeFileError(f"{shown}: {_reason(error)}; extract the codes again") from error
    except (OSError, KeyError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        refuse_if_busy(path, error)
        refuse_if_short(error)
        if "consistency flags" in str(error):  # set in the header by a writer without locks
            raise FileInUseError(
                f"{shown}: in use by another program, or left half written by one that crashed; "
                "close that and try again, or extract the codes again"
            ) from None
        raise CodeFileError(
            f"{shown}: not a readable HDF5 code file, damaged or incomplete ({_reason(error)}); "
            "extract the codes again"
        ) from error
    return code_set


class _NewerVersionError(Exception):
    """A file of a newer format."""


def _reason(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class _Reader:
    """Reads an open file, which may be damaged or malicious. CodeFileErrors are half a line,
    without the file."""

    def __init__(self, file: h5py.File, length: int):
        """``length`` is the file's, in bytes."""
        self._file = file
        self._length = length

    def code_set(self) -> CodeSet:
        file = self._file
        if "format" not in file.attrs or self._attribute(file, "format", str) != FORMAT:
            raise CodeFileError(f"an HDF5 file, but not of format {FORMAT!r}")
        version = self._attribute(file, "version", int)
        if version > VERSION:
            raise _NewerVersionError(f"format version {version}; this release reads {VERSION}")
        if version < 1:
            raise CodeFileError(f"there is no format version {version}")
        columns: dict[str, Any] = {
            name: self._array(name, kinds)
            for name, (kinds, _, optional) in ARRAYS.items()
            if not (optional or (version == 1 and name in _NEW_IN_2)) or name in file
        }
        if version == 1:
            roots, file_names = [""], self._texts("file_names")
        else:
            roots = self._text_list("roots")
            file_names = self._file_names(roots, columns["root_index"])
        instances = None
        if "instances" in file:
            found = {
                name: self._array(f"instances/{name}", kinds)
                for name, (kinds, _) in INSTANCE_ARRAYS.items()
            }
            bits = self._attribute(file["instances"], "bits", int)
            instances = InstanceCodes(bits=bits, **found)
        texts = {
            name: self._attribute(file, name, str)
            for name in TEXT_ATTRIBUTES
            if name not in _NOT_IN_ALL or name in file.attrs
        }
        if np.ndim(columns["codes"]) != 2:
            raise CodeFileError(f"codes are of shape {columns['codes'].shape}")
        return CodeSet(
            bits=self._attribute(file, "bits", int),
            image_ids=self._texts("image_ids"),
            file_names=file_names,
            class_names=self._text_list("class_names"),
            count_difficult=self._attribute(file, "count_difficult", bool),
            instances=instances,
            roots=roots,
            **columns,
            **texts,
        )

    def _attribute(self, source: h5py.Group, name: str, kind: type) -> Any:
        if name not in source.attrs:
            raise CodeFileError(f"attribute {name!r} is missing")
        stored = source.attrs.get_id(name)
        declared = math.prod(stored.shape) * stored.dtype.itemsize
        if declared > self._length:
            raise CodeFileError(f"attribute {name!r} declares {declared} bytes")
        value = source.attrs[name]
        if isinstance(value, bytes):
            value = os.fsdecode(value)
        if isinstance(value, (np.generic, np.ndarray)) and np.ndim(value) == 0:
            value = value.item()
        if not isinstance(value, kind):
            raise CodeFileError(
                f"attribute {name!r} is {type(value).__name__}, not {kind.__name__}"
            )
        return value

    def _text_list(self, name: str) -> list[str]:
        values = self._attribute(self._file, name, np.ndarray)
        return [os.fsdecode(v) if isinstance(v, bytes) else str(v) for v in values.ravel()]

    def _node(self, name: str) -> h5py.HLObject:
        # A link could point at another file.
        node = self._file
        for part in name.split("/"):
            link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
            if link is None:
                raise CodeFileError(f"{name} is missing")
            if not isinstance(link, h5py.HardLink):
                raise CodeFileError(f"{name} is a link")
            node = node[part]
        return node

    def _dataset(self, name: str) -> h5py.Dataset:
        dataset = self._node(name)
        if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
            raise CodeFileError(f"{name} is not an array")
        if dataset.is_virtual or dataset.external:  # perhaps in any other file
            raise CodeFileError(f"{name} is stored elsewhere")
        declared = math.prod(dataset.shape) * dataset.dtype.itemsize
        stored = min(dataset.id.get_storage_size(), self._length)
        if declared > _MAX_COMPRESSION * stored or (not dataset.chunks and declared > stored):
            raise CodeFileError(
                f"{name} declares shape {dataset.shape} but holds {stored} bytes at most"
            )
        return dataset

    def _array(self, name: str, kinds: str) -> np.ndarray:
        dataset = self._dataset(name)
        if h5py.check_string_dtype(dataset.dtype) is not None:
            raise CodeFileError(f"{name} holds text")
        if dataset.dtype.kind not in kinds:
            raise CodeFileError(f"{name} holds {dataset.dtype}, not the expected type")
        return dataset[()]

    def _texts(self, name: str) -> list[str]:
        """A text column, or an array of text, as version 1 and other programs write it."""
        if not isinstance(self._node(name), h5py.Dataset):
            return self._text_column(name)
        dataset = self._dataset(name)
        if h5py.check_string_dtype(dataset.dtype) is None:
            raise CodeFileError(f"{name} holds {dataset.dtype}, not the expected type")
        return [str(text) for text in dataset.asstr("utf-8", "surrogateescape")[()].ravel()]

    def _text_column(self, name: str) -> list[str]:
        return split_texts(
            name, self._array(f"{name}/bytes", "u"), self._array(f"{name}/offsets", "iu")
        )

    def _file_names(self, roots: list[str], root_index: np.ndarray) -> list[str]:
        paths = self._texts("relative_paths")
        if root_index.shape != (len(paths),):
            raise CodeFileError(f"root_index is of shape {root_index.shape}, not ({len(paths)},)")
        if len(paths) and not (root_index.min() >= 0 and root_index.max() < len(roots)):
            raise CodeFileError(f"root_index points outside the {len(roots)} roots")
        return [
            join_path(roots[root], path)
            for root, path in zip(root_index.tolist(), paths, strict=True)
        ]


def split_texts(name: str, text: np.ndarray, offsets: np.ndarray) -> list[str]:
    """The texts of a column that is stored as one text.

    Args:
        name: of the column, for messages.
        text: uint8 (L,), all texts, one after the other.
        offsets: int (N + 1,), where each begins, and the end.

    Raises:
        CodeFileError: they are no text column; the message is half a line.
    """
    if text.dtype != np.uint8 or text.ndim != 1 or offsets.ndim != 1 or not len(offsets):
        raise CodeFileError(f"{name} is no text column")
    if offsets.dtype.kind not in "iu":
        raise CodeFileError(f"{name}/offsets holds {offsets.dtype}, not whole numbers")
    if offsets[0] != 0 or offsets[-1] != len(text) or np.any(offsets[1:] < offsets[:-1]):
        raise CodeFileError(f"{name}/offsets decrease, or don't span the {len(text)} bytes")
    if not text.all():
        raise CodeFileError(f"{name} holds a zero byte")
    data, ends = text.tobytes(), offsets.tolist()
    return [os.fsdecode(data[a:b]) for a, b in itertools.pairwise(ends)]
