"""Binary codes in memory and on disk: one HDF5 layout for evaluation, indexing and search.

========================= ====================== ================================================
root attributes                                  ``format`` "regiondh-codes", ``version``,
                                                 ``bits`` K, ``dataset``, ``config``,
                                                 ``class_names``, ``count_difficult``,
                                                 ``model_fingerprint``; optional ``settings``
``codes``                 uint8 (N, ceil(K/8))   as ``numpy.packbits`` with bitorder "big"
``labels``                uint8 (N, C)           multi-hot; absent where unknown
``image_ids``             UTF-8 str (N,)
``file_names``            UTF-8 str (N,)
``activations``           float16 (N, K)         optional
``features``              float16 (N, D)         optional
``instances``             group                  optional; attribute ``bits`` K1
``instances/codes``       uint8 (M, ceil(K1/8))  one row a detection
``instances/image_index`` int64 (M,)             row of ``codes``
``instances/boxes``       float32 (M, 4)         XYXY, pixels of the original image
``instances/scores``      float32 (M,)
``instances/classes``     int64 (M,)
========================= ====================== ================================================
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..structures.codes import CodeFileError, CodeSet, InstanceCodes, check_code_set
from ..utils.file_io import replace_when_complete

__all__ = ["read_codes", "write_codes"]

FORMAT = "regiondh-codes"
VERSION = 1

_MAX_COMPRESSION = 1040  # deflate cannot shrink data further than about 1,032 to 1


def write_codes(path: str | os.PathLike, code_set: CodeSet) -> None:
    """Writes a code file: complete, or absent (an older file of that name stays).

    Raises:
        CodeFileError: the code set's arrays do not fit together.
        OSError: the file cannot be written, for instance because the disk is full.
    """
    try:
        check_code_set(code_set)
    except ValueError as error:
        raise CodeFileError(f"{path}: not written, {error}") from None
    with replace_when_complete(path) as temporary:
        temporary.write_bytes(_file_image(code_set))


def _file_image(code_set: CodeSet) -> bytes:
    """The bytes of a code file, made in memory: on a full disk HDF5 would crash the process."""

    def strings(values: Sequence[str]) -> np.ndarray:
        """Fixed length, since HDF5 follows damaged references of variable-length text blindly."""
        encoded = [str(value).encode("utf-8") for value in values]
        length = max(map(len, encoded), default=0) or 1
        return np.array(encoded, dtype=h5py.string_dtype("utf-8", length))

    # Since HDF5 1.10 headers carry checksums: damage is then an error, not a crash of the library.
    with h5py.File(
        "codes.h5", "w", libver=("v110", "v110"), driver="core", backing_store=False
    ) as file:
        attributes = {"format": FORMAT, "class_names": list(code_set.class_names)}
        for name in ("dataset", "config", "model_fingerprint", "settings"):
            attributes[name] = getattr(code_set, name)
        for name, value in attributes.items():
            text = strings(value if isinstance(value, list) else [value])
            file.attrs.create(name, text if isinstance(value, list) else text[0], dtype=text.dtype)
        file.attrs["version"] = VERSION
        file.attrs["bits"] = int(code_set.bits)
        file.attrs["count_difficult"] = bool(code_set.count_difficult)
        file["codes"] = code_set.codes
        for name in ("image_ids", "file_names"):
            file[name] = strings(getattr(code_set, name))
        for name, dtype in (("labels", "u1"), ("activations", "f2"), ("features", "f2")):
            values = getattr(code_set, name)
            if values is not None:
                file[name] = np.asarray(values, dtype)
        found = code_set.instances
        if found is not None:
            group = file.create_group("instances")
            group.attrs["bits"] = int(found.bits)
            group["codes"] = found.codes
            group["image_index"] = np.asarray(found.image_index, "i8")
            group["boxes"] = np.asarray(found.boxes, "f4")
            group["scores"] = np.asarray(found.scores, "f4")
            group["classes"] = np.asarray(found.classes, "i8")
        file.flush()
        return file.id.get_file_image()


def read_codes(path: str | os.PathLike) -> CodeSet:
    """Reads a code file and checks everything that a reader relies on.

    The file may come from a stranger: only plain datasets of this layout are read, and nothing is
    allocated for a size that the file's bytes cannot hold.

    Raises:
        CodeFileError: missing, not HDF5, damaged, another format or version, or inconsistent.
    """
    path = Path(path)
    if not path.is_file():
        raise CodeFileError(f"{path}: no such file; write it with tools/extract_codes.py")
    try:
        code_set = _read(path)
        check_code_set(code_set)
    except ValueError as error:
        raise CodeFileError(f"{path}: {error}; extract the codes again") from error
    return code_set


def _read(path: Path) -> CodeSet:
    """The contents of a file; raises CodeFileError with what is wrong in half a line."""
    try:
        with h5py.File(path, "r") as file:
            return _parse(file)
    except CodeFileError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CodeFileError(
            f"not a readable HDF5 code file, damaged or incomplete ({reason})"
        ) from error


def _parse(file: h5py.File) -> CodeSet:
    def attribute(source: h5py.Group, name: str, kind: type) -> Any:
        if name not in source.attrs:
            raise CodeFileError(f"attribute {name!r} is missing")
        value = source.attrs[name]
        if isinstance(value, bytes):
            value = value.decode("utf-8")
        if isinstance(value, (np.generic, np.ndarray)) and np.ndim(value) == 0:
            value = value.item()
        if not isinstance(value, kind):
            raise CodeFileError(
                f"attribute {name!r} is {type(value).__name__}, not {kind.__name__}"
            )
        return value

    def array(name: str, kinds: str) -> np.ndarray:
        # A link could point at another file, and external or virtual storage at any file.
        link = file
        for part in name.split("/"):
            if not isinstance(link.get(part, getlink=True), h5py.HardLink):
                raise CodeFileError(f"{name} is a link")
            link = link[part]
        dataset = link
        if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
            raise CodeFileError(f"{name} is not an array")
        if dataset.is_virtual or dataset.external:
            raise CodeFileError(f"{name} is stored elsewhere")
        declared = math.prod(dataset.shape) * dataset.dtype.itemsize
        if declared > _MAX_COMPRESSION * dataset.id.get_storage_size():
            raise CodeFileError(
                f"{name} declares shape {dataset.shape} but holds "
                f"{dataset.id.get_storage_size()} bytes"
            )
        if h5py.check_string_dtype(dataset.dtype) is not None:
            if "O" not in kinds:
                raise CodeFileError(f"{name} holds text")
            return dataset.asstr("utf-8")[()]
        if dataset.dtype.kind not in kinds:
            raise CodeFileError(f"{name} holds {dataset.dtype}, not the expected type")
        return dataset[()]

    if "format" not in file.attrs or attribute(file, "format", str) != FORMAT:
        raise CodeFileError(f"an HDF5 file, but not of format {FORMAT!r}")
    version = attribute(file, "version", int)
    if version != VERSION:
        raise CodeFileError(
            f"format version {version}, of a newer regiondh_d2 perhaps; this one reads {VERSION}"
        )
    for name in ("codes", "image_ids", "file_names"):
        if name not in file:
            raise CodeFileError(f"{name} is missing")
    instances = None
    if "instances" in file:
        instances = InstanceCodes(
            codes=array("instances/codes", "u"),
            bits=attribute(file["instances"], "bits", int),
            image_index=array("instances/image_index", "iu"),
            boxes=array("instances/boxes", "f"),
            scores=array("instances/scores", "f"),
            classes=array("instances/classes", "iu"),
        )
    names = attribute(file, "class_names", np.ndarray)
    return CodeSet(
        codes=array("codes", "u"),
        bits=attribute(file, "bits", int),
        image_ids=array("image_ids", "O").tolist(),
        file_names=array("file_names", "O").tolist(),
        labels=array("labels", "u") if "labels" in file else None,
        class_names=[n.decode("utf-8") if isinstance(n, bytes) else str(n) for n in names.ravel()],
        dataset=attribute(file, "dataset", str),
        config=attribute(file, "config", str),
        count_difficult=attribute(file, "count_difficult", bool),
        model_fingerprint=attribute(file, "model_fingerprint", str),
        settings=attribute(file, "settings", str) if "settings" in file.attrs else "",
        activations=array("activations", "f") if "activations" in file else None,
        features=array("features", "f") if "features" in file else None,
        instances=instances,
    )
