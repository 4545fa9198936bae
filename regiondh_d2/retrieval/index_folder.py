"""An index on disk: the codes of a code file, ready to search, and what answers say about them.

================ =================================================================================
``index.json``   ``format`` "regiondh-index", ``version``, ``engine``, ``options``, ``source`` (the
                 code file), ``dataset``, ``model_fingerprint`` and ``levels``: for each level its
                 ``bits``, its ``count`` and, if the search is approximate, its ``recall@100``
``image.npz``    index of the image codes (H2); row i is row i of ``items.h5``
``instance.npz`` index of the codes of detected objects (H1); row i is row i of ``instances`` there
``items.h5``     the code file itself: ids, file names, labels, boxes, classes, scores
================ =================================================================================
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..structures.codes import CodeSet
from ..utils.errors import RegionDHError
from ..utils.file_io import write_json
from .code_store import read_codes, write_codes
from .hamming_index import ENGINES, HammingIndex, IndexFileError, create_index, self_recall

__all__ = ["LEVELS", "IndexFolder", "read_index_folder", "write_index_folder"]

FORMAT = "regiondh-index"
VERSION = 1
LEVELS = ("image", "instance")

_RECORD = "index.json"
_ITEMS = "items.h5"
_RECALL_K = 100


@dataclass
class IndexFolder:
    """What an index folder holds.

    Attributes:
        path: the folder.
        record: the contents of ``index.json``.
        items: the indexed images and their instances.
        levels: the indexes by level, "image", "instance" or both; their rows are those of ``items``
            and of its ``instances``.
    """

    path: Path
    record: dict[str, Any]
    items: CodeSet
    levels: dict[str, HammingIndex]

    def level(self, name: str) -> HammingIndex:
        """The index of a level.

        Raises:
            IndexFileError: the folder has no such level.
        """
        if name not in self.levels:
            raise IndexFileError(
                f"{self.path}: has no level {name!r}; build it with tools/build_index.py --level "
                f"{name}"
            )
        return self.levels[name]

    def check_model(self, fingerprint: str) -> list[str]:
        """Refuses queries coded by another model: distances to their codes mean nothing.

        Args:
            fingerprint: of the model that codes the queries, "" if unknown.

        Returns:
            Warnings, one line each: an unknown fingerprint is accepted with one.

        Raises:
            IndexFileError: the index is of another model.
        """
        own = self.items.model_fingerprint
        if not own or not fingerprint:
            whose = "the index" if not own else "the query"
            return [f"{whose} has no model fingerprint: cannot check that one model made all codes"]
        if own != fingerprint:
            raise IndexFileError(
                f"{self.path}: was coded by model {own[:12]}, the query by {fingerprint[:12]}; use "
                "the same weights, or code the images again and build a new index"
            )
        return []


def write_index_folder(
    path: str | os.PathLike,
    items: CodeSet,
    *,
    levels: Sequence[str] | None = None,
    engine: str = "faiss",
    source: str = "",
    **options: int,
) -> IndexFolder:
    """Index a code set in a folder: complete, or absent (an older index of that name stays).

    Args:
        path: the folder; missing ones above it are created.
        items: what to index.
        levels: some of :data:`LEVELS`; by default all that ``items`` has codes for.
        engine, options: as for :func:`~.hamming_index.create_index`.
        source: name of the code file, for the record.

    Returns:
        What was written.

    Raises:
        IndexFileError: ``items`` lacks a level, or something else stands at ``path``.
        ImportError: the engine's package isn't installed.
        ValueError: options that don't fit, or code arrays that don't.
    """
    path = Path(path).resolve()
    _check_replaceable(path)
    if levels is None:
        levels = [level for level in LEVELS if _codes_of(items, level) is not None]
    indexes, described = {}, {}
    for level in levels:
        found = _codes_of(items, level)
        if found is None:
            raise IndexFileError(
                f"{source or 'the code set'}: has no {level} codes; extract the codes again with "
                "detected objects, or index the images alone"
            )
        codes, bits = found
        index = create_index(bits, engine, **options)
        index.add(codes)
        indexes[level] = index
        described[level] = {"bits": index.bits, "count": len(index)}
        if not index.exact:
            described[level][f"recall@{_RECALL_K}"] = self_recall(index, _RECALL_K)
    record = {
        "format": FORMAT,
        "version": VERSION,
        "engine": engine,
        "options": options,
        "source": source,
        "dataset": items.dataset,
        "model_fingerprint": items.model_fingerprint,
        "levels": described,
    }
    with _replace_folder_when_complete(path) as temporary:
        write_codes(temporary / _ITEMS, items)
        for level, index in indexes.items():
            index.save(temporary / _file_name(level))
        write_json(temporary / _RECORD, record)
    return IndexFolder(path, record, items, indexes)


def read_index_folder(path: str | os.PathLike, engine: str | None = None) -> IndexFolder:
    """Read an index folder and check that its files belong together.

    Args:
        path: the folder.
        engine: an exact engine to search with in place of the one that the folder was built for,
            such as "numpy" where FAISS isn't installed.

    Raises:
        IndexFileError: no index folder, damaged, another version, or files of different indexes.
        CodeFileError: a damaged ``items.h5``.
        ImportError: the engine's package isn't installed.
    """
    path = Path(path)
    record = _read_record(path)
    items = read_codes(path / _ITEMS)
    if record["model_fingerprint"] != items.model_fingerprint:
        raise IndexFileError(f"{path}: {_RECORD} and {_ITEMS} are of two models; build it again")
    options = record["options"] if engine is None else {}
    indexes = {}
    for level in record["levels"]:
        found = _codes_of(items, level)
        if found is None:
            raise IndexFileError(f"{path}: {_ITEMS} has no {level} codes; build the index again")
        codes, bits = found
        try:
            index = create_index(bits, engine or record["engine"], **options)
        except ValueError as error:
            raise IndexFileError(f"{path / _RECORD}: {error}; build the index again") from None
        index.load(path / _file_name(level))
        if index.next_row != len(codes):
            raise IndexFileError(
                f"{path}: {_file_name(level)} is of {index.next_row} codes and {_ITEMS} of "
                f"{len(codes)}; build the index again"
            )
        indexes[level] = index
    return IndexFolder(path, record, items, indexes)


def _codes_of(items: CodeSet, level: str) -> tuple[np.ndarray, int] | None:
    """Packed codes and their length, or None where there are none."""
    if level not in LEVELS:
        raise RegionDHError(f"level {level!r} is not known: use {' or '.join(LEVELS)}")
    holder = items if level == "image" else items.instances
    return None if holder is None else (holder.codes, holder.bits)


def _file_name(level: str) -> str:
    return f"{level}.npz"


def _read_record(path: Path) -> dict[str, Any]:
    if not (path / _RECORD).is_file():
        raise IndexFileError(f"{path}: no index folder; build one with tools/build_index.py")
    try:
        record = json.loads((path / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IndexFileError(f"{path / _RECORD}: not readable ({error}); build it again") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise IndexFileError(f"{path / _RECORD}: not of format {FORMAT!r}; build the index again")
    if record.get("version") != VERSION:
        raise IndexFileError(
            f"{path}: format version {record.get('version')}, this release reads {VERSION}; update "
            "regiondh_d2 or build the index again"
        )
    kinds = {"engine": str, "options": dict, "model_fingerprint": str, "levels": dict}
    for name, kind in kinds.items():
        if not isinstance(record.get(name), kind):
            raise IndexFileError(f"{path / _RECORD}: {name} is missing or wrong; build it again")
    if record["engine"] not in ENGINES or not record["levels"].keys() <= set(LEVELS):
        raise IndexFileError(
            f"{path / _RECORD}: engine {record['engine']!r} or levels "
            f"{', '.join(record['levels'])} are not known; build the index again"
        )
    return record


def _check_replaceable(path: Path) -> None:
    """Refuses to replace anything but an index folder: a mistyped path must not cost data."""
    if not path.exists():
        return
    if not path.is_dir():
        raise IndexFileError(f"{path}: is a file; name a folder for the index")
    names = {file.name for file in path.iterdir()}
    if not names:
        return
    if _RECORD not in names:
        raise IndexFileError(f"{path}: holds files but no index; name another folder")
    strangers = names - {_RECORD, _ITEMS, *map(_file_name, LEVELS)}
    if strangers:
        raise IndexFileError(
            f"{path}: holds {min(strangers)} beside an index; move that away or name another folder"
        )


@contextmanager
def _replace_folder_when_complete(path: Path) -> Iterator[Path]:
    """Yields a new folder beside ``path``, renamed to ``path`` when the block succeeds."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        # A folder with files in it cannot be renamed over: the old one steps aside.
        try:
            if path.exists():
                path.rename(old)
            temporary.rename(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
