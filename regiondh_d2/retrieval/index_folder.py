"""An index on disk: the codes of a code file, ready to search, and what answers say about them.

===================== ============================================================================
``index.json``        ``format`` "regiondh-index", ``version`` 2, ``engine``, ``options``, ``bits``
                      of an image's code, ``roots`` (the folders of the photos), ``fingerprint`` of
                      the network, ``network`` (its short name, "" where unknown), ``source`` (the
                      code file), ``dataset``; ``levels``: for each level its ``bits``, its
                      ``count`` and, if the search is approximate, its ``recall@100``; ``files``:
                      the names of the files below
``codes-G.h5``        the code file itself: codes, ids, file names, labels, objects
``image-G.npz``       what an approximate search of image codes (H2) needs beside them: its lists
``instance-G.npz``    the same for the codes of detected objects (H1)
===================== ============================================================================

G counts generations. A folder changes by writing the files of a new generation beside the old ones;
then ``index.json`` is replaced, in one step. So who opens the folder finds one generation or the
next, whole. A folder that is open stays as it was, since all of it is in memory. Row i of a level
is row i of the codes, or of the objects in them.

In version 1 the code file is ``items.h5``, and ``image.npz`` and ``instance.npz`` hold the codes a
second time. It can be read, and is replaced when the index is built again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..data.photo_files import is_system_file
from ..structures.codes import CodeFileError, CodeSet, move_root
from ..utils.display import display_name
from ..utils.errors import InputNotFoundError, RegionDHError
from ..utils.file_io import mark_folder, write_json
from ..utils.locks import hold_lock, refuse_if_busy
from ..utils.marks import FOLDER_MARK
from ..utils.paths import folder_start
from .code_store import read_codes, write_codes
from .hamming_index import ENGINES, HammingIndex, IndexFileError, create_index, self_recall

__all__ = [
    "LEVELS",
    "IndexFolder",
    "check_index_output",
    "move_roots",
    "read_index_folder",
    "write_index_folder",
]

FORMAT = "regiondh-index"
VERSION = 2
LEVELS = ("image", "instance")

_RECORD = "index.json"
_LOCK = ".lock"
_GENERATION = re.compile(r"(codes|image|instance)-([0-9]{1,9})\.(h5|npz)")
_OLD_FILES = ("items.h5", "image.npz", "instance.npz")  # of version 1
_RECALL_K = 100
_ATTEMPTS = 20  # to open a folder that is written again and again


@dataclass
class IndexFolder:
    """What an index folder held when it was opened.

    Attributes:
        path: the folder.
        record: the contents of ``index.json``, as of version 2.
        items: the indexed images and their instances.
        levels: the indexes by level, "image", "instance" or both; their rows are those of ``items``
            and of its ``instances``.
    """

    path: Path
    record: dict[str, Any]
    items: CodeSet
    levels: dict[str, HammingIndex] = field(default_factory=dict)

    def level(self, name: str) -> HammingIndex:
        """The index of a level.

        Raises:
            IndexFileError: the folder has no such level.
        """
        if name not in self.levels:
            raise IndexFileError(
                f"{display_name(self.path)}: has no level {name!r}; build it with "
                f"`regiondh build-index --level {name}`"
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
                f"{display_name(self.path)}: was coded by model {own[:12]}, the query by "
                f"{fingerprint[:12]}; use the same weights, or code the images again and build a "
                "new index"
            )
        return []

    def rows_like(
        self, file_name: str, content_sha256: bytes | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The rows of the images that are a query itself.

        A row of the query's file whose content is known to be another is of an older state of it,
        and not among them.

        Args:
            file_name: of the query.
            content_sha256: of the query's file, or None where it is unknown.

        Returns:
            The rows of the same file, and those of another file of the same content, int64,
            ascending.
        """
        contents = self.items.content_sha256
        same_content = set()
        if content_sha256 is not None and contents is not None and len(contents):
            wanted = np.frombuffer(content_sha256, np.uint8)
            near = np.flatnonzero(contents[:, 0] == wanted[0])  # compares one byte of most rows
            same_content.update(near[(contents[near] == wanted).all(axis=1)].tolist())
        same_file = set()
        for name in (os.path.abspath(file_name), os.path.realpath(file_name), file_name):
            row = self._row_of_file.get(name)
            if row is None:
                continue
            known = content_sha256 is not None and contents is not None and contents[row].any()
            if not known or row in same_content:
                same_file.add(row)
        others = same_content - same_file
        return np.array(sorted(same_file), np.int64), np.array(sorted(others), np.int64)

    @cached_property
    def _row_of_file(self) -> dict[str, int]:
        """The first row of each file name."""
        names = self.items.file_names
        return {name: len(names) - 1 - i for i, name in enumerate(reversed(names))}

    def rows_below(self, folders: Sequence[str | os.PathLike]) -> np.ndarray:
        """Which images lie in one of these folders, bool (N,).

        Raises:
            IndexFileError: no image lies in one of them.
        """
        starts = []
        for folder in folders:
            places = {os.path.abspath(folder), os.path.realpath(folder)}
            starts.append(tuple(os.path.join(os.fspath(place), "") for place in places))
        found = np.zeros((len(starts), len(self.items)), bool)
        for i, start in enumerate(starts):
            found[i] = [name.startswith(start) for name in self.items.file_names]
            if not found[i].any():
                raise IndexFileError(
                    f"{display_name(folders[i])}: the index {display_name(self.path)} has no photo "
                    "in this folder; extract codes of it and build the index again"
                )
        return found.any(axis=0)


def move_roots(items: CodeSet, moves: Sequence[str]) -> CodeSet:
    """The code set of photos whose folders stand elsewhere now.

    Args:
        items: the codes.
        moves: texts OLD=NEW, each a folder that photos were in, and where it is now.

    Raises:
        RegionDHError: a text isn't OLD=NEW, there is no folder NEW, or no photo was in OLD.
    """
    for move in moves:
        old, new = _split_move(move, items)
        if not os.path.isdir(new):
            raise InputNotFoundError(
                f"--root {display_name(move)}: there is no folder {display_name(new)}; give "
                "OLD=NEW, where the photos were and where they are"
            )
        items = move_root(items, old, os.path.realpath(new))
    return items


def _split_move(move: str, items: CodeSet) -> tuple[str, str]:
    """OLD and NEW of a text. Names may have "=", too: the first OLD that photos lie in is meant."""
    places = [i for i, letter in enumerate(move) if letter == "="]
    splits = [(move[:i], move[i + 1 :]) for i in places if i and i + 1 < len(move)]
    if not splits:
        raise RegionDHError(f"--root {display_name(move)}: is not OLD=NEW, two folders")
    for old, new in splits:
        for place in (os.path.abspath(old), os.path.realpath(old)):
            start = folder_start(place)
            if any(name.startswith(start) for name in items.file_names):
                return place, new
    return os.path.abspath(splits[0][0]), splits[0][1]


def check_index_output(path: str | os.PathLike) -> None:
    """Refuses to write an index where something else is: a mistyped path must not cost data.

    Raises:
        IndexFileError: ``path`` is a file, or a folder with anything but an index in it.
    """
    path, name = Path(path), display_name(path)
    if not path.exists():
        return
    if not path.is_dir():
        raise IndexFileError(f"{name}: is a file; name a folder for the index")
    names = {file for file in os.listdir(path) if not is_system_file(file)}
    if not names:
        return
    is_marked = (path / FOLDER_MARK).is_file()
    strangers = {file for file in names if not _GENERATION.fullmatch(file)}
    # Without index.json, only what a build left that was killed.
    if _RECORD not in names and (strangers or not is_marked):
        raise IndexFileError(f"{name}: holds files but no index; name another folder")
    strangers -= {_RECORD, *_OLD_FILES}
    if strangers:
        raise IndexFileError(
            f"{name}: holds {display_name(min(strangers))} beside an index; move that away or name "
            "another folder"
        )
    if not is_marked and names == {_RECORD} and not _is_own_record(path / _RECORD):
        raise IndexFileError(
            f"{name}: holds an {_RECORD} that isn't an index's; name another folder"
        )


def _is_own_record(path: Path) -> bool:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.get("format") == FORMAT


def write_index_folder(
    path: str | os.PathLike,
    items: CodeSet,
    *,
    levels: Sequence[str] | None = None,
    engine: str = "faiss",
    source: str = "",
    network: str = "",
    **options: int,
) -> IndexFolder:
    """Index a code set in a folder: complete, or absent (an older index of that name stays).

    Args:
        path: the folder; missing ones above it are created.
        items: what to index.
        levels: some of :data:`LEVELS`; by default all that ``items`` has codes for.
        engine, options: as for :func:`~.hamming_index.create_index`.
        source: name of the code file, for the record.
        network: short name of the network that made the codes, for the record.

    Returns:
        What was written.

    Raises:
        IndexFileError: ``items`` lacks a level, or something else stands at ``path``.
        FileInUseError: another program writes this index.
        MissingPackageError: the engine's package isn't installed.
        RegionDHError: options that don't fit, or code arrays that don't.
    """
    path = Path(path).resolve()
    check_index_output(path)
    if levels is None:
        levels = [level for level in LEVELS if _codes_of(items, level) is not None]
    indexes, described = {}, {}
    for level in levels:
        found = _codes_of(items, level)
        if found is None:
            raise IndexFileError(
                f"{display_name(source) or 'the code set'}: has no {level} codes; extract the "
                "codes again with detected objects, or index the images alone"
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
        "bits": int(items.bits),
        "roots": [root for root in items.roots if root],
        "fingerprint": items.model_fingerprint,
        "network": network,
        "source": os.fspath(source),
        "dataset": items.dataset,
        "levels": described,
    }
    with _new_generation(path) as generation:
        files = {"codes": f"codes-{generation}.h5"}
        write_codes(path / files["codes"], items)
        for level, index in indexes.items():
            if index.is_trained:
                files[level] = f"{level}-{generation}.npz"
                index.save_training(path / files[level])
        record["files"] = files
        write_json(path / _RECORD, record)
    return IndexFolder(path, record, items, indexes)


@contextmanager
def _new_generation(path: Path) -> Iterator[int]:
    """Yields the number of a new generation, whose files the block writes, ``index.json`` last.

    Then the files of older ones go; after a failure those of the new one.
    """
    is_new = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    try:
        with hold_lock(path / _LOCK, path):
            mark_folder(path, "index")
            generation = 1 + max(map(_generation_of, os.listdir(path)), default=0)
            try:
                yield generation
            except BaseException:
                used = _used_files(path)  # after Ctrl-C these may be the new ones
                _remove(path, lambda name: _generation_of(name) == generation and name not in used)
                raise
            used = _used_files(path)
            _remove(path, lambda name: name not in used)
    finally:
        if is_new and not (path / _RECORD).exists():
            for name in (FOLDER_MARK, _LOCK):
                (path / name).unlink(missing_ok=True)
            with suppress(OSError):
                path.rmdir()


def _generation_of(name: str) -> int:
    match = _GENERATION.fullmatch(name)
    return int(match[2]) if match else 0


def _used_files(path: Path) -> set[str]:
    try:
        return set(_read_record(path)["files"].values())
    except RegionDHError:
        return set()


def _remove(path: Path, is_wanted: Callable[[str], bool]) -> None:
    """Removes files of generations, and of version 1, for which ``is_wanted`` is true of the name.

    Who opens the folder just now and misses them reads ``index.json`` again. A file that can't be
    removed, since another program has it open, goes the next time.
    """
    for name in os.listdir(path):
        if (name in _OLD_FILES or _GENERATION.fullmatch(name)) and is_wanted(name):
            with suppress(OSError):
                (path / name).unlink()


def read_index_folder(
    path: str | os.PathLike, engine: str | None = None, moves: Sequence[str] = ()
) -> IndexFolder:
    """Read an index folder and check that its files belong together.

    Args:
        path: the folder.
        engine: an exact engine to search with in place of the one that the folder was built for,
            such as "numpy" where FAISS isn't installed.
        moves: texts OLD=NEW, folders of photos that stand elsewhere now; see :func:`move_roots`.

    Raises:
        IndexFileError: no index folder, damaged, another version, or files of different indexes.
        CodeFileError: a damaged code file.
        FileInUseError: another program keeps a file for itself.
        MissingPackageError: the engine's package isn't installed.
        RegionDHError: a wrong move.
    """
    path = Path(path)
    record = _read_record(path)
    for _ in range(_ATTEMPTS):
        try:
            return _open(path, record, engine, moves)
        except (IndexFileError, CodeFileError):
            # A new generation may have come meanwhile, and the files of this one have gone.
            again = _read_record(path)
            if again == record:
                raise
            record = again
    raise IndexFileError(
        f"{display_name(path)}: in use by another program that writes it again and again; wait "
        "until it ends"
    )


def _open(
    path: Path, record: dict[str, Any], engine: str | None, moves: Sequence[str]
) -> IndexFolder:
    is_old = record["version"] == 1
    file_of = {"codes": _OLD_FILES[0]} if is_old else record["files"]
    items = read_codes(path / file_of["codes"])
    name = display_name(path)
    if record["fingerprint"] != items.model_fingerprint:
        raise IndexFileError(
            f"{name}: {_RECORD} and {file_of['codes']} are of two models; build it again"
        )
    indexes = {}
    for level, numbers in record["levels"].items():
        found = _codes_of(items, level)
        if found is None:
            raise IndexFileError(
                f"{name}: {file_of['codes']} has no {level} codes; build the index again"
            )
        codes, bits = found
        try:
            options = record["options"] if engine is None else {}
            index = create_index(bits, engine or record["engine"], **options)
        except (ValueError, TypeError) as error:
            if isinstance(error, ImportError):
                raise
            raise IndexFileError(
                f"{display_name(path / _RECORD)}: {error}; build the index again"
            ) from None
        if is_old:
            _load_old(index, path, level, len(codes), file_of["codes"])
        else:
            if numbers.get("count") != len(codes) or numbers.get("bits") != bits:
                raise IndexFileError(
                    f"{name}: {_RECORD} is of {numbers.get('count')} {level} codes of "
                    f"{numbers.get('bits')} bits and {file_of['codes']} of {len(codes)} of {bits}; "
                    "build the index again"
                )
            # An exact engine given in place of an approximate one needs nothing but the codes.
            if level in file_of and not index.exact:
                index.load_training(path / file_of[level])
            index.add(codes)
        indexes[level] = index
    items = move_roots(items, moves)
    roots = [root for root in items.roots if root]
    record = {**record, "version": VERSION, "bits": int(items.bits), "roots": roots}
    return IndexFolder(path, record, items, indexes)


def _load_old(index: HammingIndex, path: Path, level: str, count: int, items_name: str) -> None:
    """Codes of a level of version 1, whose file may lack some that were removed."""
    index.load(path / f"{level}.npz")
    if index.next_row != count:
        raise IndexFileError(
            f"{display_name(path)}: {level}.npz is of {index.next_row} codes and {items_name} of "
            f"{count}; build the index again"
        )


def _codes_of(items: CodeSet, level: str) -> tuple[np.ndarray, int] | None:
    """Packed codes and their length, or None where there are none."""
    if level not in LEVELS:
        raise RegionDHError(f"level {level!r} is not known: use {' or '.join(LEVELS)}")
    holder = items if level == "image" else items.instances
    return None if holder is None else (holder.codes, holder.bits)


def _read_record(path: Path) -> dict[str, Any]:
    """``index.json``, with the names of version 2; ``version`` is that of the files."""
    name, record_name = display_name(path), display_name(path / _RECORD)
    if not (path / _RECORD).is_file():
        raise IndexFileError(f"{name}: no index folder; build one with `regiondh build-index`")
    try:
        record = json.loads((path / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        refuse_if_busy(path / _RECORD, error)
        raise IndexFileError(f"{record_name}: not readable ({error}); build it again") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise IndexFileError(f"{record_name}: not of format {FORMAT!r}; build the index again")
    version = record.get("version")
    if version not in (1, VERSION) or isinstance(version, bool):
        raise IndexFileError(
            f"{name}: format version {version}, this release reads 1 and {VERSION}; update "
            "regiondh_d2 or build the index again"
        )
    if version == 1:
        # It names the fingerprint otherwise, and no files.
        fingerprint = record.pop("model_fingerprint", None)
        record = {**record, "fingerprint": fingerprint, "network": "", "files": {}}
    kinds = {"engine": str, "options": dict, "fingerprint": str, "levels": dict, "files": dict}
    for key, kind in kinds.items():
        if not isinstance(record.get(key), kind):
            raise IndexFileError(f"{record_name}: {key} is missing or wrong; build it again")
    if record["engine"] not in ENGINES or not record["levels"].keys() <= set(LEVELS):
        raise IndexFileError(
            f"{record_name}: engine {record['engine']!r} or levels "
            f"{', '.join(record['levels'])} are not known; build the index again"
        )
    if version == VERSION:
        _check_files(record, record_name)
    return record


def _check_files(record: Mapping[str, Any], record_name: str) -> None:
    """Refuses names that aren't those of a generation's files, such as one that leads elsewhere."""
    files, levels = record["files"], record["levels"]
    named = all(
        isinstance(file, str)
        and (match := _GENERATION.fullmatch(file))
        and match[1] == key
        and match[3] == ("h5" if key == "codes" else "npz")
        for key, file in files.items()
    )
    if "codes" not in files or not named or not all(isinstance(v, dict) for v in levels.values()):
        raise IndexFileError(f"{record_name}: files or levels are wrong; build the index again")
