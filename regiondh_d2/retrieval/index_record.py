"""The files of an index folder: ``index.json``, which names them, and their generations."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..data.photo_files import is_system_file
from ..utils.display import display_name
from ..utils.errors import RegionDHError
from ..utils.file_io import mark_folder
from ..utils.locks import hold_lock, refuse_if_busy
from ..utils.marks import FOLDER_MARK
from ..utils.shortage import refuse_if_short
from .engines import ENGINES
from .index_file import IndexFileError

__all__ = [
    "FORMAT",
    "GRANULARITIES",
    "OLD_CODES",
    "RECORD",
    "VERSION",
    "check_index_output",
    "new_generation",
    "read_record",
]

FORMAT = "regiondh-index"
VERSION = 2
GRANULARITIES = ("image", "instance")
"""What is indexed: images or objects. ``index.json`` calls them levels."""

RECORD = "index.json"
OLD_CODES = "items.h5"  # of version 1

_LOCK = ".lock"
_GENERATION = re.compile(r"(codes|image|instance)-([0-9]{1,9})\.(h5|npz)")
_SHARD = re.compile(r"(image|instance)-([0-9]{1,9})-[0-9]{1,9}\.npy")
_OLD_FILES = (OLD_CODES, "image.npz", "instance.npz")


def check_index_output(path: str | os.PathLike) -> None:
    """Check that an index may be written here: a mistyped path must not destroy data.

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
    strangers = {file for file in names if not _match(file)}
    # Without index.json, only the files of a killed build.
    if RECORD not in names and (strangers or not is_marked):
        raise IndexFileError(f"{name}: holds files but no index; name another folder")
    strangers -= {RECORD, *_OLD_FILES}
    if strangers:
        raise IndexFileError(
            f"{name}: holds {display_name(min(strangers))} beside an index; move that away or name "
            "another folder"
        )
    if not is_marked and names == {RECORD} and not _is_own_record(path / RECORD):
        raise IndexFileError(
            f"{name}: holds an {RECORD} that isn't an index's; name another folder"
        )


def _is_own_record(path: Path) -> bool:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.get("format") == FORMAT


@contextmanager
def new_generation(path: Path) -> Iterator[int]:
    """Yields the number of a new generation. The block writes its files, ``index.json`` last.

    Afterwards the files of older generations are deleted, or after a failure those of the new one.
    None is deleted while ``index.json`` can't be read.

    Raises:
        FileInUseError: another program writes this index.
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
                with suppress(OSError, RegionDHError):
                    used = _used_files(path)  # after Ctrl-C these may be the new ones
                    _remove(
                        path, lambda name: _generation_of(name) == generation and name not in used
                    )
                raise
            with suppress(OSError, RegionDHError):  # the next generation removes them, too
                used = _used_files(path)
                _remove(path, lambda name: name not in used)
    finally:
        if is_new and not (path / RECORD).exists():
            for name in (FOLDER_MARK, _LOCK):
                (path / name).unlink(missing_ok=True)
            with suppress(OSError):
                path.rmdir()


def _match(name: str) -> re.Match[str] | None:
    return _GENERATION.fullmatch(name) or _SHARD.fullmatch(name)


def _generation_of(name: str) -> int:
    match = _match(name)
    return int(match[2]) if match else 0


def _used_files(path: Path) -> set[str]:
    """The files that ``index.json`` names, none where there is no such file.

    Raises:
        OSError, RegionDHError: it can't be read, so that no file is known to be of no use.
    """
    if not os.path.lexists(path / RECORD):
        return set()
    record = read_record(path)
    shards = [shard for level in record["levels"].values() for shard in level.get("shards", ())]
    return {*record["files"].values(), *(shard["file"] for shard in shards)}


def _remove(path: Path, is_wanted: Callable[[str], bool]) -> None:
    """Remove the files of generations and of version 1 whose names ``is_wanted`` accepts.

    A reader that opens the folder at this moment and misses them reads ``index.json`` again. A file
    that another program has open is removed the next time.
    """
    for name in os.listdir(path):
        if (name in _OLD_FILES or _match(name)) and is_wanted(name):
            with suppress(OSError):
                (path / name).unlink()


def read_record(path: Path) -> dict[str, Any]:
    """Read ``index.json``, with the keys of version 2; ``version`` is that of the files.

    Raises:
        IndexFileError: no index folder, not readable, of another version, or something is wrong.
        FileInUseError: another program has locked the file.
    """
    name, record_name = display_name(path), display_name(path / RECORD)
    if not (path / RECORD).is_file():
        raise IndexFileError(f"{name}: no index folder; build one with `regiondh build-index`")
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        refuse_if_busy(path / RECORD, error)
        refuse_if_short(error)
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
        # Version 1 has another key for the fingerprint, and names no files.
        fingerprint = record.pop("model_fingerprint", None)
        files = {"codes": OLD_CODES}
        record = {**record, "fingerprint": fingerprint, "network": "", "files": files}
    kinds = {"engine": str, "options": dict, "fingerprint": str, "levels": dict, "files": dict}
    for key, kind in kinds.items():
        if not isinstance(record.get(key), kind):
            raise IndexFileError(f"{record_name}: {key} is missing or wrong; build it again")
    engine = ENGINES.get(record["engine"])
    is_known = engine is not None and (version != 1 or not engine.is_stored)  # 1 has no such
    if not is_known or not record["levels"].keys() <= set(GRANULARITIES):
        raise IndexFileError(
            f"{record_name}: engine {record['engine']!r} or levels "
            f"{', '.join(record['levels'])} are not known; build the index again"
        )
    if version == VERSION:
        _check_files(record, record_name)
    return record


def _check_files(record: Mapping[str, Any], record_name: str) -> None:
    """Check that the names are those of a generation's files and don't lead elsewhere."""
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
    for granularity, level in levels.items():
        shards = level.get("shards", [] if record["engine"] != "shards" else None)
        if not isinstance(shards, list) or not all(_is_shard(s, granularity) for s in shards):
            raise IndexFileError(f"{record_name}: shards are wrong; build the index again")


def _is_shard(shard: Any, granularity: str) -> bool:
    """Whether an entry of ``shards`` has the right types, and names no file elsewhere."""
    if not isinstance(shard, dict) or not isinstance(shard.get("file"), str):
        return False
    match, count = _SHARD.fullmatch(shard["file"]), shard.get("count")
    return match is not None and match[1] == granularity and type(count) is int and count > 0
